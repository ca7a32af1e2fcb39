import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks import gaussian_enn
from tests.support import golden
from tests.support.cost import flops, flops_at_indices, mlp_flops
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    init,
    key,
    output,
    param_shapes,
    random_params,
)


def test_golden_values():
    enn = gaussian_enn.GaussianNoiseMLP([7, 2], 0.3)
    golden.assert_enn_matches("gaussian_noise_mlp", enn)


def test_anchor():
    enn = gaussian_enn.GaussianNoiseMLP([4, 2], 0.1)
    assert_output_starts(output(enn), [0.147384, 0.334875])


def test_parameter_tree_has_a_pair_for_every_bias():
    assert param_shapes(gaussian_enn.GaussianNoiseMLP([4, 2])) == {
        "mlp/~/linear_0": {"w": (3, 4), "b": ((4,), (4,))},
        "mlp/~/linear_1": {"w": (4, 2), "b": ((2,), (2,))},
    }


@pytest.mark.strict
def test_every_layer_draws_its_noise_from_the_sequence_of_the_index():
    enn = gaussian_enn.GaussianNoiseMLP([4, 2], 0.5)
    params, state = init(enn)
    rng = hk.PRNGSequence(key(2))
    out = X
    for i, layer in enumerate(["mlp/~/linear_0", "mlp/~/linear_1"]):
        mean, scale = params[layer]["b"]
        np.testing.assert_array_equal(scale, 0.5)
        bias = mean + scale * jax.random.normal(next(rng), mean.shape, mean.dtype)
        out = (np.maximum(out, 0) if i else out) @ params[layer]["w"] + bias[None]
    result, _ = compiled(enn.apply)(params, state, X, key(2))
    np.testing.assert_allclose(result, out, rtol=1e-5, atol=1e-6)


def test_init_takes_two_keys_for_a_layer():
    params, _ = init(gaussian_enn.GaussianNoiseMLP([4, 2]))
    rng = hk.PRNGSequence(key(0))
    keys = [next(rng) for _ in range(4)]
    for layer, layer_key, fan_in in [
        ("linear_0", keys[0], 3),
        ("linear_1", keys[2], 4),
    ]:
        truncated = jax.random.truncated_normal(
            layer_key, -2.0, 2.0, params[f"mlp/~/{layer}"]["w"].shape
        )
        np.testing.assert_allclose(
            params[f"mlp/~/{layer}"]["w"], truncated / np.sqrt(fan_in), rtol=1e-5
        )


def test_convolutions_get_no_noise():
    def make():
        return hk.Sequential([hk.Conv2D(2, 3), hk.Flatten(), hk.Linear(2)])

    enn = gaussian_enn.GaussianNoiseEnn(make, init_scale=0.0)
    params = param_shapes(enn, jnp.ones((2, 4, 4, 1)))
    assert params["conv2_d"]["b"] == (2,)
    assert params["linear"]["b"] == ((2,), (2,))


def test_modules_with_state_keep_it():
    def make():
        norm = hk.BatchNorm(True, True, 0.9)
        return hk.Sequential([hk.Linear(2), lambda x: norm(x, is_training=True)])

    enn = gaussian_enn.GaussianNoiseEnn(make)
    params, state = random_params(enn, X)
    _, new_state = compiled(enn.apply)(params, state, X, key(2))
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    counters = [leaf for leaf in jax.tree.leaves(new_state) if leaf.dtype == jnp.int32]
    assert counters
    assert all(int(counter) == 1 for counter in counters)


def test_first_product_runs_once():
    inputs = jnp.ones((8, 64))
    enn = gaussian_enn.GaussianNoiseMLP([32, 32, 2])
    keys = jax.random.split(key(0), 100)

    def noise(index):
        rng = hk.PRNGSequence(index)
        return [jax.random.normal(next(rng), [size]) for size in (32, 32, 2)]

    layers = mlp_flops(8, 64, 32) + 100 * mlp_flops(8, 32, 32, 2)
    drawing = flops(jax.vmap(noise), keys)
    assert flops_at_indices(enn, inputs) <= 1.1 * (layers + drawing)


@pytest.mark.parametrize("index", [0.5, jnp.ones(2), jax.random.split(key(0), 3)])
def test_an_index_that_is_no_key(index):
    enn = gaussian_enn.GaussianNoiseMLP([4, 2])
    params, state = random_params(enn, X)
    with pytest.raises(ValueError, match="index must be one PRNG key, got"):
        enn.apply(params, state, X, index)


@pytest.mark.parametrize("sizes", [[], [4, 0]])
def test_wrong_sizes(sizes):
    with pytest.raises(ValueError, match="output_sizes"):
        gaussian_enn.GaussianNoiseMLP(sizes)
