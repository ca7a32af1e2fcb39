import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import ensembles
from tests.support.fast import X, key


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def _start(values):
    return np.ravel(values)[:2]


@pytest.mark.parametrize(
    ("kwargs", "start"),
    [
        ({}, [0.165155, -0.507248]),
        ({"gamma": (0.5, 2.0), "scale": 3.0}, [0.567461, -1.504862]),
    ],
)
def test_documented_values_of_a_gp(kwargs, start):
    gp = networks.make_random_feat_gp(3, 2, 5, key(1), **kwargs)
    _close(_start(gp(X)), start, rtol=2e-5)


def test_a_gp_is_the_sum_of_its_features():
    gp = networks.make_random_feat_gp(3, 2, 7, key(9), gamma=(0.5, 2.0), scale=1.5)
    wk, bk, ak, gk = jax.random.split(key(9), 4)
    w = np.asarray(jax.random.normal(wk, [7, 3, 2]))
    b = 2 * np.pi * np.asarray(jax.random.uniform(bk, [1, 7, 2]))[0]
    alpha = np.asarray(jax.random.normal(ak, [7])) / np.sqrt(7)
    gamma = 0.5 + 1.5 * np.asarray(jax.random.uniform(gk, [1, 7, 1]))[0, :, 0]
    expected = 1.5 * sum(
        alpha[j] * np.cos(gamma[j] * (np.asarray(X) @ w[j]) + b[j]) for j in range(7)
    )
    _close(gp(X), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "gamma", [np.float64(2), np.array(2), jnp.float32(2), np.float32(2), 2]
)
def test_gamma_may_be_a_scalar_of_any_type(gamma):
    expected = networks.make_random_feat_gp(3, 2, 5, key(1), 2.0)(X)
    _close(networks.make_random_feat_gp(3, 2, 5, key(1), gamma)(X), expected)


@pytest.mark.parametrize("gamma", [(1.0, 2.0), [1, 2], np.array([1.0, 2.0])])
def test_gamma_may_be_a_pair_of_any_type(gamma):
    expected = networks.make_random_feat_gp(3, 2, 5, key(1), (1.0, 2.0))(X)
    _close(networks.make_random_feat_gp(3, 2, 5, key(1), gamma)(X), expected)


@pytest.mark.parametrize("gamma", [(1.0,), (1.0, 2.0, 3.0), ((1.0, 2.0),)])
def test_gamma_is_a_number_or_a_pair(gamma):
    with pytest.raises(ValueError, match="gamma must be a number or a pair of numbers"):
        networks.make_random_feat_gp(3, 2, 5, key(1), gamma)


@pytest.mark.parametrize("sizes", [(0, 2, 5), (3, -1, 5), (3, 2, 0), (3, 2.0, 5)])
def test_sizes_of_a_gp_are_positive(sizes):
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        networks.make_random_feat_gp(*sizes, key(1))  # pyrefly: ignore[bad-argument-count]


@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 2), (3,), ()])
def test_a_gp_takes_inputs_of_its_size(shape):
    gp = networks.make_random_feat_gp(3, 2, 5, key(1))
    with pytest.raises(ValueError, match=r"inputs must have shape \[batch, 3\]"):
        gp(np.ones(shape, np.float32))


def test_a_gp_flattens_its_inputs():
    gp = networks.make_random_feat_gp(6, 2, 5, key(1))
    images = jax.random.normal(key(2), (4, 3, 2))
    _close(gp(images), gp(images.reshape(4, 6)))


def test_the_variance_of_a_gp_is_half_the_squared_scale_as_documented():
    gp = networks.make_random_feat_gp(1, 4000, 50, key(1), scale=2.0)
    values = np.asarray(gp(np.zeros((1, 1), np.float32)))
    alpha = np.asarray(jax.random.normal(jax.random.split(key(1), 4)[2], [50]))
    np.testing.assert_allclose(values.var(), 2 * np.mean(alpha**2), rtol=0.1)


def test_an_ensemble_of_gps_uses_successive_keys():
    gps = ensembles.make_random_gp_ensemble_prior_fns(3, 2, 4, 1.5, 3, seed=6)
    rng = hk.PRNGSequence(6)
    assert len(gps) == 3
    for gp in gps:
        expected = networks.make_random_feat_gp(3, 2, 4, next(rng), 1.5)
        np.testing.assert_array_equal(gp(X), expected(X))
