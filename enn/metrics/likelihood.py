"""Likelihoods of the labels: one for each index sample, and averaged over samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _sharding
from enn.metrics.base import (
    at_least_float32,
    log_mean_exp,
    pairwise_mean,
    pairwise_sum,
)


def check_labels(labels: chex.Array, batch: int, num_classes: int) -> jax.Array:
    """Returns labels `[batch, 1]` or `[batch]` as `[batch]`.

    Raises:
      ValueError: unless labels are integers in [0, num_classes), one a row.
    """
    column = _checks.as_column("labels", _checks.as_array(labels))
    _checks.shape("labels", column, (batch, 1), "[batch, 1]")
    _checks.class_labels(column, num_classes)
    return column[:, 0]


def check_integer_labels(labels: chex.Array, batch: int, num_classes: int) -> jax.Array:
    """Returns integer labels `[batch, 1]` or `[batch]` as `[batch]`.

    Raises:
      TypeError: if the labels are of another type, even if their values are integers.
      ValueError: if a label is out of range, or the shape is wrong.
    """
    dtype = _checks.as_array(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {dtype}.")
    return check_labels(labels, batch, num_classes)


def check_not_empty(name: str, array: chex.Array) -> None:
    """Raises ValueError for no index samples or no rows: their mean is NaN."""
    if 0 in np.shape(array):
        raise ValueError(
            f"{name} must not be empty, got shape {list(np.shape(array))}."
        )


def at_labels(values: chex.Array, labels: chex.Array) -> jax.Array:
    """Picks the entry of each row at its label; a label out of range gives NaN.

    Args:
      values: `[..., batch, num_classes]`.
      labels: integer classes `[batch]`.

    Returns:
      `[..., batch]`.
    """
    picked = jnp.asarray(values).at[..., jnp.arange(labels.shape[0]), labels]
    return picked.get(mode="fill", wrap_negative_indices=False)


@_sharding.allow_explicit_axes
@jax.jit
def marginal_probs(logits: chex.Array) -> jax.Array:
    """Class probabilities averaged over the index samples.

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.

    Returns:
      `[batch, num_classes]`.

    Raises:
      ValueError: if `logits` does not have three axes.
    """
    _check_logits(logits)
    return pairwise_mean(class_probs(logits))


def class_probs(logits: chex.Array) -> jax.Array:
    """Returns the softmax over the last axis, in at least float32."""
    logits = at_least_float32(logits)
    highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    return weights / pairwise_sum(weights, -1)[..., None]


def sum_of_others(probs: jax.Array) -> jax.Array:
    """Returns one minus the probability above 0.5, if there is one, `[...]`.

    The sum of the others tells 1e-18 from 1e-22, which 1 - p rounds to 0.

    Args:
      probs: `[..., num_classes]`.
    """
    return pairwise_sum(jnp.where(probs > 0.5, 0, probs), -1)


@_sharding.allow_explicit_axes
def label_log_likelihoods(logits: chex.Array, labels: chex.Array) -> jax.Array:
    """Log-probability of each label under each index sample.

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
      labels: integer classes `[batch, 1]`.

    Returns:
      `[num_enn_samples, batch]`. Inside `jax.jit`, where labels cannot be looked at,
      one that is out of range gives NaN.

    Raises:
      TypeError: unless the labels are integers.
      ValueError: if a label is out of range, or a shape is wrong.
    """
    _check_logits(logits)
    _, batch, num_classes = logits.shape
    return _log_likelihoods(logits, check_integer_labels(labels, batch, num_classes))


@jax.jit
def _log_likelihoods(logits: chex.Array, labels: chex.Array) -> jax.Array:
    # log_softmax, but picked before it is normalised: no array of all classes is made.
    # The largest entry adds exp 0 = 1 to the normaliser, which is left for log1p. It is
    # known by its place: in a larger program, logits are rounded anew at each use, and
    # the largest may differ from the maximum in its last digit.
    logits = at_least_float32(logits)
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    is_largest = jax.nn.one_hot(
        logits.argmax(axis=-1), logits.shape[-1], dtype=logits.dtype
    )
    others = pairwise_sum(jnp.exp(shifted) - is_largest, -1)
    return at_labels(shifted, labels) - jnp.log1p(others)


@jax.jit
def average_log_likelihood(log_likelihoods: jax.Array) -> jax.Array:
    """Mean over n of log (1/S) Σₛ exp ℓₛₙ, for ℓ of shape `[num_enn_samples, n]`."""
    return pairwise_mean(log_mean_exp(log_likelihoods))


def _check_logits(logits: chex.Array) -> None:
    axes = "[num_enn_samples, batch, num_classes]"
    _checks.shape("logits", logits, (None, None, None), axes)
