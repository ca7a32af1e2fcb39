import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import networks
from enn.networks.base import EnnArray, EnnNoState
from enn.networks.utils import make_centered_enn, make_centered_enn_no_state

X_TRAIN = np.random.default_rng(0).normal([1, -2, 30], [1, 5, 0.1], (50, 3))


def _identity(init=None):
    def apply(params, state, inputs, index):
        return inputs, {"seen": index}

    return EnnArray(apply, init, networks.PrngIndexer())


def _centered(x_train, inputs):
    return make_centered_enn(_identity(), x_train).apply({}, {}, inputs, 7)[0]


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3)])
def test_inputs_are_standardised_with_the_population_statistics(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = (x - X_TRAIN.mean(0)) / X_TRAIN.std(0, ddof=0)
    out = _centered(X_TRAIN, x)
    assert out.shape == shape
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    st.lists(st.floats(-10, 10), min_size=3, max_size=3),
)
def test_scaling_and_shifting_the_data_changes_nothing(scale, shift):
    x_train = X_TRAIN[:, [0, 1, 0]]
    changed = x_train * scale + shift
    np.testing.assert_allclose(
        _centered(changed, changed[:4]), _centered(x_train, x_train[:4]), atol=2e-2
    )


def test_statistics_of_images_are_per_pixel():
    x_train = np.random.default_rng(1).normal(size=(9, 2, 2, 1))
    expected = (x_train - x_train.mean(0)) / x_train.std(0)
    np.testing.assert_allclose(_centered(x_train, x_train), expected, atol=1e-5)


def test_a_constant_feature_is_divided_by_1e_9_as_documented():
    x_train = np.array([[1.0, 0.0], [1.0, 2.0]], np.float32)
    out = _centered(x_train, np.array([[2.0, 0.0]], np.float32))
    np.testing.assert_allclose(out, [[1e9, -1.0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float64])
def test_training_inputs_of_any_dtype_give_float32(dtype):
    x_train = np.array([[0, 2], [4, 2], [5, 5]], dtype)
    inputs = np.array([[3, 3]], np.float32)
    expected = (inputs - [3, 3]) / [np.std([0, 4, 5]), np.std([2, 2, 5])]
    out = _centered(x_train, inputs)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_init_gets_the_raw_inputs_and_the_rest_is_kept():
    init, x = object(), jnp.ones((2, 3))
    enn = _identity(init)
    centered = make_centered_enn(enn, X_TRAIN)
    assert (centered.init, centered.indexer) == (init, enn.indexer)
    assert centered.apply({}, {}, x, 7)[1] == {"seen": 7}


def test_networks_without_state_are_centered_alike():
    def apply(params, inputs, index):
        return params * inputs + index

    enn = EnnNoState(apply, object(), networks.PrngIndexer())
    centered = make_centered_enn_no_state(enn, X_TRAIN)
    x = jnp.ones((2, 3))
    expected = 2 * _centered(X_TRAIN, x) + 1
    np.testing.assert_allclose(jax.jit(centered.apply)(2.0, x, 1.0), expected)
    assert (centered.init, centered.indexer) == (enn.init, enn.indexer)


@pytest.mark.parametrize("make", [make_centered_enn, make_centered_enn_no_state])
@pytest.mark.parametrize("x_train", [np.ones(3), np.float32(2)])
def test_training_inputs_without_features_are_refused(make, x_train):
    with pytest.raises(ValueError, match=r"x_train must have shape \[num_data, ...\]"):
        make(_identity(), x_train)


def test_inputs_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \[3\], got shape \[2, 4\]"):
        _centered(X_TRAIN, jnp.ones((2, 4)))
