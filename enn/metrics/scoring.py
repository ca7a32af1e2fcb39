"""Proper scoring rules of class probabilities."""

import chex
import jax
import jax.numpy as jnp

from enn import _sharding
from enn.metrics.base import pairwise_mean, pairwise_sum
from enn.metrics.likelihood import check_labels, check_not_empty, marginal_probs


def calculate_brier_score(logits: chex.Array, labels: chex.Array) -> jax.Array:
    """Brier score of the marginal prediction, mean over the batch.

    (1/B) Σ_b Σ_c (p_b(c) − 1[c = y_b])², from 0, certain and right, to 2, certain and
    wrong (Brier, 1950, https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2).

    >>> import numpy as np
    >>> from enn import metrics
    >>> logits, labels = np.log([[[0.8, 0.2]]]), np.array([[0]])
    >>> round(float(metrics.calculate_brier_score(logits, labels)), 3)  # 2 · 0.2²
    0.08

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
      labels: classes `[batch, 1]`.

    Returns:
      A scalar.

    Raises:
      ValueError: unless labels are integers in range and shapes are right.
    """
    check_not_empty("logits", logits)
    probs = marginal_probs(logits)
    classes = check_labels(labels, *probs.shape)
    return _mean_squared_distance(probs, classes)


@_sharding.allow_explicit_axes
@jax.jit
def _mean_squared_distance(probs: jax.Array, classes: chex.Array) -> jax.Array:
    is_label = jax.nn.one_hot(classes, probs.shape[-1], dtype=bool)
    others = jnp.where(is_label, 0, probs)
    # The distance of the label, 1 - p, is the sum of the others.
    distances = pairwise_sum(others**2, -1) + pairwise_sum(others, -1) ** 2
    return pairwise_mean(distances)
