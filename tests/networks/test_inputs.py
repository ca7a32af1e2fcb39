import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import inputs
from enn.networks.inputs import flat_inputs, init_once


@pytest.mark.parametrize(
    ("shape", "flat"),
    [((2, 3), (2, 3)), ((2, 3, 4, 1), (2, 12)), ((5,), (5,)), ((0, 2, 3), (0, 6))],
)
def test_all_axes_but_the_first_become_one(shape, flat):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(flat_inputs(x), x.reshape(flat))
    np.testing.assert_array_equal(jax.jit(flat_inputs)(x), x.reshape(flat))


@pytest.mark.parametrize(
    ("dtype", "flat_dtype"),
    [
        (np.uint8, jnp.float32),
        (np.int64, jnp.float32),
        (np.bool_, jnp.float32),
        (np.float64, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_inputs_that_are_no_floats_become_float32(dtype, flat_dtype):
    flat = flat_inputs(np.ones((2, 3), dtype))
    assert flat.dtype == flat_dtype
    np.testing.assert_array_equal(flat, 1)


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"\[batch, \.\.\.\], got a scalar"):
        flat_inputs(np.float32(3))


def test_networks_of_the_same_sizes_share_the_program_that_initialises_them():
    def init(prior_scale, seed):
        enn = networks.MLPEnsembleMatchedPrior([3, 1], None, 2, prior_scale, seed)
        return enn.init(jax.random.key(seed), np.ones((2, 4)), 0)[0]

    first = init(1.0, 0)
    before = inputs._compiled.cache_info().misses
    again, other = init(2.0, 0), init(1.0, 1)
    assert inputs._compiled.cache_info().misses == before
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert (first["mlp/~/linear_0"]["w"] != other["mlp/~/linear_0"]["w"]).all()


def test_functions_that_read_the_same_keep_their_own_values():
    def returns(value):
        array = jnp.asarray(value)
        return lambda x: jax.jit(lambda: array)() + x

    def calls(value):
        shape = jax.ShapeDtypeStruct((), np.float32)
        return lambda x: x + jax.pure_callback(lambda: np.float32(value), shape)

    for make in (returns, calls):
        assert [float(init_once(make(v), 0.0)) for v in (1.0, 2.0)] == [1.0, 2.0]


def test_programs_of_two_random_streams_are_two():
    def draw(key):
        return jax.random.normal(key, (3,))

    key = jax.random.key(0)
    for partitionable in (False, True, False):
        with jax.threefry_partitionable(partitionable):
            np.testing.assert_array_equal(init_once(draw, key), draw(key))
