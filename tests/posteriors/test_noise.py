"""Normal numbers are those of JAX, whatever the key and its stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from enn.posteriors import noise
from enn.posteriors.noise import normal, split


@pytest.mark.parametrize("seed", [0, 7, 2**31])
@pytest.mark.parametrize(
    "shape", [(), (1,), (3, 5), (2, 0), (512,), (513,), (9, 401), (2**14 + 1,)]
)
def test_numbers_are_those_of_jax(seed, shape):
    key = jax.random.PRNGKey(seed)
    got = jax.jit(lambda k: normal(k, shape, jnp.dtype("float32")))(key)
    expected = jax.random.normal(key, shape, jnp.float32)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_numbers_are_those_of_their_bits():
    steps = np.arange(2**23, dtype=np.uint32)  # All that differ.
    got = jax.jit(noise._from_bits)(steps << 9)
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = np.maximum(least, steps.astype(np.float32) / np.float32(2**22) + least)
    expected = np.sqrt(2) * scipy.special.erfinv(uniform.astype(np.float64))
    # Four units in the last place; JAX's numbers are up to 49 off.
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("is_partitionable", [True, False])
def test_keys_are_those_of_jax(impl, is_partitionable):
    key = jax.random.key_data(jax.random.key(3, impl=impl))
    with (
        jax.default_prng_impl(impl),
        jax.threefry_partitionable(is_partitionable),
    ):
        got, expected = split(key, 7), jax.random.split(key, 7)
    np.testing.assert_array_equal(got, expected)


def test_the_first_number_of_the_specification():
    key = jax.random.split(jax.random.PRNGKey(0), 2)[1]
    np.testing.assert_allclose(normal(key, (), jnp.dtype("float32")), -2.4424558)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_other_types_are_drawn_by_jax(dtype):
    key = jax.random.PRNGKey(1)
    got = normal(key, (5,), jnp.dtype(dtype))
    np.testing.assert_array_equal(got, jax.random.normal(key, (5,), dtype))


def test_the_older_stream_stays():
    key = jax.random.PRNGKey(1)
    with jax.threefry_partitionable(False):
        got = normal(key, (5,), jnp.dtype("float32"))
        expected = jax.random.normal(key, (5,))
        np.testing.assert_array_equal(got, expected)
    assert not np.allclose(got, normal(key, (5,), jnp.dtype("float32")))


def test_keys_of_other_generators_are_left_to_them():
    key = jax.random.key_data(jax.random.key(0, impl="rbg"))
    with jax.default_prng_impl("rbg"):
        got = normal(key, (5,), jnp.dtype("float32"))
        np.testing.assert_array_equal(got, jax.random.normal(key, (5,)))


def test_keys_and_numbers_map():
    keys = jax.random.split(jax.random.PRNGKey(2), 3)
    got = jax.vmap(lambda key: normal(key, (4,), jnp.dtype("float32")))(keys)
    expected = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
