"""Uncertainty of each row: scores that are higher where the network knows less.

All take logits `[num_enn_samples, batch, num_classes]` and return `[batch]`. They
rank rows to find out-of-distribution inputs (`enn.metrics.ood`), to abstain
(`enn.metrics.selective`) or to ask for labels (`enn.active_learning`).
"""

import jax
import jax.numpy as jnp

from enn.metrics.likelihood import marginal_probs


@jax.jit
def variation_ratio(logits: jax.Array) -> jax.Array:
    """One minus the largest marginal class probability, `[batch]`.

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
    """
    return 1 - marginal_probs(logits).max(axis=-1)


@jax.jit
def predictive_entropy(logits: jax.Array) -> jax.Array:
    """Entropy H(p̄) of the marginal prediction p̄, total uncertainty in nats, `[batch]`.

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
    """
    return _entropy(marginal_probs(logits))


@jax.jit
def mutual_information(logits: jax.Array) -> jax.Array:
    """Mutual information of label and epistemic index, in nats, `[batch]`.

    H(p̄) − (1/S) Σₛ H(pₛ): the epistemic part of the total uncertainty, known as BALD
    (Houlsby et al., 2011, https://arxiv.org/abs/1112.5745).

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
    """
    expected_entropy = _entropy(jax.nn.softmax(logits)).mean(axis=0)
    return predictive_entropy(logits) - expected_entropy


def _entropy(probs: jax.Array) -> jax.Array:
    return jnp.sum(jax.scipy.special.entr(probs), axis=-1)
