"""What data may look like: a matrix, one row an example."""

import chex
import jax
import jax.numpy as jnp

from enn import _checks


def float_rows(name: str, data: chex.Array) -> jax.Array:
    """Returns `data` as floating-point numbers, at least float32.

    Raises:
      ValueError: unless `data` is `[num_data, dim]` with at least one row.
    """
    _checks.shape(name, data, (None, None), "[num_data, dim]")
    data = _checks.as_array(data)
    if not data.shape[0]:
        raise ValueError(f"{name} must have at least one row.")
    return jnp.asarray(data, jnp.promote_types(jnp.result_type(data), jnp.float32))
