import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from tests.support.cost import flops, mlp_flops
from tests.support.fast import X, key

WIDE = jnp.ones((64, 32))


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def _start(values):
    return np.ravel(values)[:2]


def test_documented_values_of_a_converted_network():
    enn = networks.epinet.make_mlp_epinet([4, 2], [5], 3)
    prior_fn = networks.convert_enn_to_prior_fn(enn, X, key(4))
    index = networks.GaussianIndexer(3)(key(3))
    _close(_start(prior_fn(X, index)), [-0.324171, -0.581728], rtol=2e-5)


def test_a_converted_network_keeps_its_state():
    def count(x):
        calls = hk.get_state("calls", (), init=jnp.ones)
        hk.set_state("calls", calls + 1)
        return calls * x

    enn = networks.wrap_net_fn_as_enn(count)
    prior_fn = networks.convert_enn_to_prior_fn(enn, X, key(0))
    for _ in range(2):
        _close(prior_fn(X, None), X)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4,)])
def test_the_null_prior_is_zero_in_float32(shape):
    zeros = networks.make_null_prior(5)(np.ones(shape, np.float64))
    assert (zeros.shape, zeros.dtype) == ((4, 5), jnp.float32)
    np.testing.assert_array_equal(zeros, 0)
    with pytest.raises(ValueError, match="output_dim must be an integer >= 1, got 0"):
        networks.make_null_prior(0)


def test_documented_values_of_a_random_mlp():
    prior_fn = networks.get_random_mlp_with_index(X, jnp.ones(4), key(2))
    out = prior_fn(X, jnp.ones(4))
    assert out.shape == (2, 1)
    _close(_start(out), [-1.342821, -2.129829], rtol=2e-5)


@pytest.mark.strict
def test_a_random_mlp_is_an_mlp_of_inputs_and_index():
    index = jax.random.normal(key(5), (4,))
    prior_fn = networks.get_random_mlp_with_index(
        X, index, key(2), [6, 2], prior_weight_std=2.0, prior_bias_std=0.7
    )

    def forward(x):
        w_init = hk.initializers.VarianceScaling(2.0)
        b_init = hk.initializers.TruncatedNormal(0.7)
        return hk.nets.MLP([6, 2], w_init, b_init)(x)

    joined = np.concatenate([X, np.stack([index] * 2)], axis=1)
    mlp = hk.without_apply_rng(hk.transform(forward))
    expected = mlp.apply(mlp.init(key(2), joined), joined)
    _close(prior_fn(X, index), expected, rtol=1e-4)


@functools.cache
def _random_mlp():
    return networks.get_random_mlp_with_index(X, np.ones(4), key(2), [2])


def test_the_input_part_of_a_random_mlp_is_computed_once():
    prior_fn = networks.get_random_mlp_with_index(WIDE, jnp.ones(4), key(2), [16, 2])
    num_indices = 100
    once = mlp_flops(64, 32, 16)
    an_index = mlp_flops(1, 4, 16) + 2 * 64 * 16 + mlp_flops(64, 16, 2) + 64 * 2
    cost = flops(jax.vmap(prior_fn, (None, 0)), WIDE, jnp.ones((num_indices, 4)))
    assert cost <= 1.1 * (once + num_indices * an_index)


@pytest.mark.parametrize(
    ("inputs", "index", "message"),
    [
        (np.ones(3), np.ones(4), r"inputs must have shape \[batch, num_features\]"),
        (np.ones((2, 3, 1)), np.ones(4), r"inputs must have shape"),
        (np.ones((2, 3)), np.ones((1, 4)), r"index must have shape \[index_dim\]"),
        (np.ones((2, 3)), 1, r"index must have shape \[index_dim\]"),
        (np.ones((2, 5)), np.ones(4), "retrieved shape"),
        (np.ones((2, 3)), np.ones(5), "retrieved shape"),
    ],
)
def test_a_random_mlp_takes_inputs_and_indices_of_its_samples(inputs, index, message):
    with pytest.raises(ValueError, match=message):
        _random_mlp()(inputs, index)


@pytest.mark.parametrize("sizes", [[], [0], [3, -1]])
def test_layer_sizes_of_a_random_mlp_are_positive(sizes):
    with pytest.raises(ValueError, match="prior_output_sizes must"):
        networks.get_random_mlp_with_index(X, jnp.ones(4), key(2), sizes)
