"""Averages over the rows of a batch by their weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.datasets.base import ArrayBatch


def weighted_mean(row_losses: chex.Array, batch: ArrayBatch) -> jax.Array:
    """Returns Σᵦ wᵦ lossᵦ / B, where w is `batch.weights`, or ones if it is None.

    Divides by the number of rows B and not by Σ w: bootstrap weights have mean one
    over the distribution of weights, not within a batch.

    Args:
      row_losses: `[batch, 1]`.
      batch: its `weights` are `[batch, 1]` or None.

    Raises:
      ValueError: for weights of another shape.
    """
    if batch.weights is None:
        return jnp.mean(row_losses)
    shape = np.shape(row_losses)
    _checks.shape("batch.weights", batch.weights, shape, f"[batch, 1] = {list(shape)}")
    return jnp.mean(batch.weights * row_losses)
