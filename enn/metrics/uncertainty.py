"""Uncertainty of each row: scores that are higher where the network knows less.

All take logits `[num_enn_samples, batch, num_classes]` and return `[batch]`. They
rank rows to find out-of-distribution inputs (`enn.metrics.ood`), to abstain
(`enn.metrics.selective`) or to ask for labels (`enn.active_learning`).
"""

import chex
import jax
import jax.numpy as jnp

from enn import _sharding
from enn.metrics.base import pairwise_mean, pairwise_sum
from enn.metrics.likelihood import class_probs, marginal_probs, sum_of_others


@jax.jit
def variation_ratio(logits: chex.Array) -> jax.Array:
    """One minus the largest marginal class probability, `[batch]`.

    1 − max_c p̄(c) (Gal et al., 2017, https://arxiv.org/abs/1703.02910).

    >>> import numpy as np
    >>> from enn import metrics
    >>> logits = np.log([[[0.9, 0.1]], [[0.5, 0.5]]])  # On average 0.7 and 0.3.
    >>> round(float(metrics.variation_ratio(logits)[0]), 3)
    0.3

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
    """
    probs = marginal_probs(logits)
    largest = probs.max(axis=-1)
    return jnp.where(largest > 0.5, sum_of_others(probs), 1 - largest)


@jax.jit
def predictive_entropy(logits: chex.Array) -> jax.Array:
    """Entropy H(p̄) of the marginal prediction p̄, total uncertainty in nats, `[batch]`.

    H(p) = −Σ_c p_c log p_c. Its epistemic part is `mutual_information` (Depeweg et al.,
    2018, https://arxiv.org/abs/1710.07283).

    >>> import numpy as np
    >>> from enn import metrics
    >>> entropy = metrics.predictive_entropy(np.zeros([10, 1, 2]))
    >>> round(float(entropy[0]), 3)  # log 2
    0.693

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
    """
    probs = marginal_probs(logits)
    # Close to 1, -log p is the sum of the others to first order, and not -log of 1.
    top = probs > 0.5
    others = jnp.broadcast_to(sum_of_others(probs)[..., None], probs.shape)
    log_top = jnp.log1p(-jnp.where(top, others, 0))
    log_other = jnp.log(jnp.where(top | (probs == 0), 1, probs))
    return pairwise_sum(-probs * jnp.where(top, log_top, log_other), -1)


@_sharding.allow_explicit_axes
@jax.jit
def mutual_information(logits: chex.Array) -> jax.Array:
    """Mutual information of label and epistemic index, in nats, `[batch]`.

    H(p̄) − (1/S) Σₛ H(pₛ): the epistemic part of the total uncertainty, known as BALD
    (Houlsby et al., 2011, https://arxiv.org/abs/1112.5745). It scores each row by
    itself; the joint information in several rows is BatchBALD (Kirsch et al., 2019,
    https://arxiv.org/abs/1906.08158), which is not implemented here.

    >>> import numpy as np
    >>> from enn import metrics
    >>> fair = np.log([[[0.5, 0.5]], [[0.5, 0.5]]])
    >>> unknown = np.array([[[50.0, 0.0]], [[0.0, 50.0]]])  # Heads or tails, for sure.
    >>> for logits in fair, unknown:
    ...     round(float(metrics.mutual_information(logits)[0]), 3)
    0.0
    0.693

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
    """
    # As (1/S) Σₛ KL(pₛ ‖ p̄) = (1/S) Σₛ Σ_c p̄ φ(u), with u = pₛ/p̄ - 1 and
    # φ(u) = (1 + u) log(1 + u) - u: no term is negative, and so nothing cancels.
    probs = class_probs(logits)
    mean = pairwise_mean(probs)[None]
    safe_mean = jnp.where(mean > 0, mean, 1)
    ratio, change = probs / safe_mean, deviations(probs) / safe_mean
    is_small = jnp.abs(change) < 0.1
    series = _phi_series(jnp.where(is_small, change, 0))
    safe_ratio = jnp.where(is_small | (ratio == 0), 1, ratio)
    phi = jnp.where(is_small, series, ratio * jnp.log(safe_ratio) - change)
    return pairwise_sum(pairwise_mean(mean * phi), -1)


def _phi_series(u: jax.Array) -> jax.Array:
    """φ(u) = Σₖ (-u)ᵏ / (k (k - 1)), from k = 2 to 10: to 2e-10 for |u| < 0.1."""
    total = jnp.zeros_like(u)
    for k in range(10, 1, -1):
        total = 1 / (k * (k - 1)) - u * total
    return u**2 * total


def deviations(probs: jax.Array) -> jax.Array:
    """Returns pₛ − p̄, `[num_enn_samples, batch, num_classes]` as `probs`.

    Those of members that agree are 0, and those of probabilities close to 1 are taken
    from the other classes, and so are not lost in rounding.
    """
    others = sum_of_others(probs)[..., None]
    complements = jnp.where(probs > 0.5, others, 1 - probs)
    is_large = probs.mean(axis=0, keepdims=True) > 0.5
    values = jnp.where(is_large, -complements, probs)
    # Differences of members that agree are exactly 0, those from a mean may not be.
    differences = values - values[:1]
    return differences - pairwise_mean(differences)[None]
