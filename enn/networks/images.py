"""Batches of images: one order of axes, one type."""

import chex
import jax
import jax.numpy as jnp

from enn import _checks


def as_images(inputs: chex.Array) -> jax.Array:
    """Returns `inputs` as floats, integers as float32.

    Raises:
      ValueError: unless `inputs` is `[batch, height, width, channels]`.
    """
    _checks.shape("inputs", inputs, (None,) * 4, "[batch, height, width, channels]")
    if not jnp.issubdtype(jnp.result_type(inputs), jnp.inexact):
        return jnp.asarray(inputs, jnp.float32)
    return jnp.asarray(inputs)


def to_nhwc(images: chex.Array, enable_double_transpose: bool) -> jax.Array:
    """Returns a batch of images as `[batch, height, width, channels]`.

    Args:
      images: a batch in that order of axes, or, on TPU, in the order in which the
        input pipeline hands batches to a TPU.
      enable_double_transpose: whether a batch on TPU is
        `[height, width, channels, batch]`. Without effect on other devices.
    """
    if enable_double_transpose and jax.default_backend() == "tpu":
        return jnp.transpose(images, (3, 0, 1, 2))
    return jnp.asarray(images)
