import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.inputs import flat_inputs


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
