"""Standard normal numbers, as `jax.random.normal` draws them, in half the time.

On a CPU, JAX compiles the rounds of its random bits (Threefry-2x32 with 20 rounds:
Salmon et al., 2011, Parallel random numbers: as easy as 1, 2, 3,
https://doi.org/10.1145/2063384.2063405) into a loop, each turn of which writes its
arrays to memory: that compiles fast where there is little of it. A sampler draws as
many numbers at each step as there are weights, which costs more than all the rest of
its update. Here the rounds are written out, so that XLA fuses them into one loop. The
numbers are the same.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _sharding

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_MOST = 2**32
"""Numbers that a key gives before the high word of their count is not zero."""


def normal(key: chex.PRNGKey, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    """Returns what `jax.random.normal(key, shape, dtype)` does.

    Args:
      key: a raw key, as of `jax.random.PRNGKey`.
      shape: of the numbers.
      dtype: float32 is drawn here; other types, keys of another generator, and those of
        the older stream (`jax_threefry_partitionable=False`) by JAX itself.
    """
    is_partitionable = jax.config.jax_threefry_partitionable  # pyrefly: ignore[missing-attribute]
    is_ours = dtype == jnp.float32 and is_partitionable and key.shape == (2,)
    if not is_ours or math.prod(shape) >= _MOST:
        return jax.random.normal(key, shape, dtype)
    bits = _random_bits(key, math.prod(shape))
    if bits.size and _sharding.num_index_devices() == 1:
        # Adds no bit, but uses all of them twice: else XLA would draw them in the loop
        # of what follows, which is then too long to be fast. Not where it takes
        # messages between devices.
        bits |= jnp.minimum(bits.max(), np.uint32(0))
    # The high 23 bits are the fraction of a number in [1, 2), then in (-1, 1).
    ones = jax.lax.bitcast_convert_type(
        (bits >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32
    )
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = (ones - np.float32(1)) * (np.float32(1) - least) + least
    uniform = jnp.maximum(least, uniform)
    return (np.sqrt(np.float32(2)) * jax.lax.erf_inv(uniform)).reshape(shape)


def _random_bits(key: chex.PRNGKey, size: int) -> jax.Array:
    """Returns the bits of the numbers 0, 1, ..., `size` - 1: both words, combined."""
    first, second = key
    keys = (first, second, first ^ second ^ _PARITY)
    high = jnp.zeros(size, jnp.uint32) + first
    low = jax.lax.iota(jnp.uint32, size) + second
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            high = high + low
            low = (low << np.uint32(distance)) | (low >> np.uint32(32 - distance))
            low = high ^ low
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high ^ low
