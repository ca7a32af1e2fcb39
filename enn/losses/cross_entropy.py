"""Cross-entropy between class labels and logits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import _checks


def label_cross_entropy(
    logits: chex.Array, labels: chex.Array, num_classes: int
) -> jax.Array:
    """Returns -log softmax(logits)[label] of each row.

    Args:
      logits: `[batch, num_classes]`.
      labels: class labels, `[batch, 1]` or `[batch]`, integers or integral floats.
      num_classes: number of classes.

    Returns:
      `[batch, 1]`, in nats. Inside `jax.jit`, where values cannot be looked at, a
      label outside [0, num_classes) gives 0.

    Raises:
      ValueError: for a wrong shape, or a wrong label outside `jax.jit`.
    """
    labels = _checks.as_column("batch.y", labels)
    _checks.class_labels(labels, num_classes)
    shape = (np.shape(labels)[0], num_classes)
    _checks.shape("logits", logits, shape, f"[batch, num_classes] = {list(shape)}")
    return _row_losses(logits, labels, num_classes)


@functools.partial(jax.jit, static_argnames="num_classes")
def _row_losses(logits: chex.Array, labels: chex.Array, num_classes: int) -> jax.Array:
    labels = jnp.asarray(labels)
    classes = labels.astype(jnp.int32)
    valid = (classes == labels) & (classes >= 0) & (classes < num_classes)
    # A gather: twice as fast on CPU as a product with one-hot labels.
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(valid, classes, 0)[:, 0]
    )
    return jnp.where(valid, losses[:, None], 0.0)
