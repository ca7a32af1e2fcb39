"""Standard normal numbers, as `jax.random.normal` draws them, in half the time.

On a CPU, JAX compiles the rounds of its random bits (Threefry-2x32 with 20 rounds:
Salmon et al., 2011, Parallel random numbers: as easy as 1, 2, 3,
https://doi.org/10.1145/2063384.2063405) into a loop, each turn of which writes its
arrays to memory: that compiles fast where there is little of it. A sampler draws as
many numbers at each step as there are weights, which costs more than all the rest of
its update. Here the rounds are written out, so that XLA fuses them into one loop. The
bits are the same, and so are the numbers, but for JAX's rounding.
"""

import functools
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
_TINY, _FEW = 512, 2**14
"""Up to so many numbers one loop is as fast as two, and one thread as fast as more."""
_COEFFICIENTS = (
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)
"""Of the polynomials of erf⁻¹ in the centre and in the tails, highest power first."""


def normal(key: chex.PRNGKey, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    """Returns what `jax.random.normal(key, shape, dtype)` does, more precisely.

    The relative error is at most 5e-7, that of JAX's numbers 6e-6.

    Args:
      key: a raw key, as of `jax.random.PRNGKey`.
      shape: of the numbers.
      dtype: float32 is drawn here on a CPU; other types, keys of another generator, and
        those of the older stream (`jax_threefry_partitionable=False`) by JAX itself.
    """
    size = math.prod(shape)
    if dtype != jnp.float32 or size >= _MOST or not _is_ours(key):
        return jax.random.normal(key, shape, dtype)
    return jax.lax.platform_dependent(
        key,
        cpu=functools.partial(_normal, size=size),
        default=lambda key: jax.random.normal(key, (size,), jnp.float32),
    ).reshape(shape)


def split(key: chex.PRNGKey, num: int) -> jax.Array:
    """Returns what `jax.random.split(key, num)` does, for a raw key."""
    if not _is_ours(key):
        return jax.random.split(key, num)
    return jnp.stack(_threefry(key, jax.lax.iota(jnp.uint32, num)), axis=1)


def _is_ours(key: chex.PRNGKey) -> bool:
    is_partitionable = jax.config.jax_threefry_partitionable  # pyrefly: ignore[missing-attribute]
    return is_partitionable and key.shape == (2,)


def _normal(key: chex.PRNGKey, size: int) -> jax.Array:
    """Draws all bits in one loop, and all numbers in another.

    Left alone, XLA makes one loop of both, which is too long to be fast.
    """
    counts = jax.lax.iota(jnp.uint32, size)
    if size <= _TINY:
        return _from_bits(_random_bits(key, counts))
    if size <= _FEW:
        # XLA shares the work on an array with another thread, and to wake that takes
        # longer than to draw so few numbers; it does not share that on a half.
        halves = jax.lax.iota(jnp.uint32, size + size % 2).reshape(2, -1)
        bits = jax.lax.map(functools.partial(_random_bits, key), halves)
        return jax.lax.map(_from_bits, bits).reshape(-1)[:size]
    bits = _random_bits(key, counts)
    if _sharding.num_index_devices() == 1:
        # Adds no bit, but uses all of them twice, for which they have to be in memory.
        # Not where it takes messages between devices.
        bits |= jnp.minimum(bits.max(), np.uint32(0))
    return _from_bits(bits)


def _random_bits(key: chex.PRNGKey, counts: jax.Array) -> jax.Array:
    """Returns the bits of the numbers at `counts`: both words, combined."""
    high, low = _threefry(key, counts)
    return high ^ low


def _threefry(key: chex.PRNGKey, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both words of the block at each of `counts`, whose high words are 0."""
    first, second = key
    keys = (first, second, first ^ second ^ _PARITY)
    high = jnp.zeros_like(counts) + first
    low = counts + second
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            high = high + low
            low = (low << np.uint32(distance)) | (low >> np.uint32(32 - distance))
            low = high ^ low
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high, low


def _from_bits(bits: jax.Array) -> jax.Array:
    """Returns √2 erf⁻¹(u) for u uniform in (-1, 1), of the high 23 bits of each."""
    # They are the fraction of a number in [1, 2).
    ones = jax.lax.bitcast_convert_type(
        (bits >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32
    )
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = (ones - np.float32(1)) * (np.float32(1) - least) + least
    uniform = jnp.maximum(least, uniform)
    return np.sqrt(np.float32(2)) * _erf_inv(uniform)


def _erf_inv(x: jax.Array) -> jax.Array:
    """Returns erf⁻¹(x) in single precision, by the polynomials of `jax.lax.erf_inv`.

    They are of Giles, 2011, "Approximating the erfinv function". JAX takes the
    logarithm of 1 - x² as `log1p(-x * x)`: slower, and less precise as it rounds x².
    """
    w = -jnp.log((1 - x) * (1 + x))
    is_centre = w < 5
    w = jnp.where(is_centre, w - np.float32(2.5), jnp.sqrt(w) - 3)
    value = jnp.zeros_like(x)
    for centre, tail in _COEFFICIENTS:
        value = value * w + jnp.where(is_centre, np.float32(centre), np.float32(tail))
    return value * x
