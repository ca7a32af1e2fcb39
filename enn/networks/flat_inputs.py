"""Inputs of fully connected networks: one float vector an example."""

import math

import chex
import jax.numpy as jnp


def flat_inputs(inputs: chex.Array) -> chex.Array:
    """Returns inputs as `[batch, num_features]`, integers as float32.

    Args:
      inputs: `[batch, ...]`, or one example `[num_features]`, which stays a vector.

    Raises:
      ValueError: if `inputs` is a scalar.
    """
    shape = jnp.shape(inputs)
    if not shape:
        raise ValueError("inputs must have shape [batch, ...], got a scalar.")
    if len(shape) > 1:
        shape = (shape[0], math.prod(shape[1:]))
    dtype = jnp.result_type(inputs)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return jnp.reshape(jnp.asarray(inputs, dtype if is_float else jnp.float32), shape)
