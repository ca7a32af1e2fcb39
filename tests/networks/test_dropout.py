import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn.networks import dropout
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


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("dropout", lambda: dropout.MLPDropoutENN([8, 8, 3], dropout_rate=0.3)),
        (
            "dropout_no_input",
            lambda: dropout.MLPDropoutENN(
                [8, 3], dropout_rate=0.2, dropout_input=False, nonzero_bias=False
            ),
        ),
    ],
)
def test_golden_values(name, make):
    golden.assert_enn_matches(name, make())


def test_anchor():
    enn = dropout.MLPDropoutENN([4, 5, 2], 0.5)
    assert_output_starts(output(enn), [-0.881843, -0.038576])


def test_parameter_tree():
    assert param_shapes(dropout.MLPDropoutENN([4, 5, 2])) == {
        "linear": {"w": (3, 4), "b": (4,)},
        "linear_1": {"w": (4, 5), "b": (5,)},
        "linear_2": {"w": (5, 2), "b": (2,)},
    }


@pytest.mark.strict
@pytest.mark.parametrize("dropout_input", [True, False])
def test_forward_is_a_masked_mlp_on_flattened_inputs(dropout_input):
    enn = dropout.MLPDropoutENN([4, 5, 2], 0.5, dropout_input)
    inputs = np.random.default_rng(1).normal(size=(6, 3, 2)).astype(np.float32)
    params, state = random_params(enn, inputs)
    masks = dropout.generate_masks(key(2), 6, [4, 5, 2], 0.5)
    out = inputs.reshape(6, 6) * (masks[0][None] if dropout_input else 1)
    for i, layer in enumerate(["linear", "linear_1", "linear_2"]):
        if i:
            out = np.maximum(out * masks[i][None], 0)
        out = out @ params[layer]["w"] + params[layer]["b"][None]
    result, _ = compiled(enn.apply)(params, state, inputs, key(2))
    np.testing.assert_allclose(result, out, rtol=1e-5, atol=1e-6)


def test_index_takes_no_keys_from_init():
    enn = dropout.MLPDropoutENN([4, 2])
    first, second = (init(enn, index=key(seed)) for seed in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_first_bias_is_random_whatever_b_init():
    b_init = hk.initializers.Constant(3.0)
    for nonzero_bias, expected in [(True, False), (False, True)]:
        enn = dropout.MLPDropoutENN([4, 2], nonzero_bias=nonzero_bias, b_init=b_init)
        params, _ = init(enn)
        assert np.all(params["linear"]["b"] == 3) == expected
        assert np.all(params["linear_1"]["b"] == 3)


@pytest.mark.strict
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    rate=st.floats(0, 0.95),
    sizes=st.sampled_from([[1], [4, 2], [5, 1, 3]]),
)
def test_masks_hold_zeros_and_the_inverse_keep_rate(seed, rate, sizes):
    masks = dropout.generate_masks(key(seed), 6, sizes, rate)
    assert [mask.shape for mask in masks] == [(n,) for n in [6, *sizes[:-1]]]
    values = np.concatenate(masks)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[values != 0], 1 / (1 - rate), rtol=1e-5)


def test_masks_drop_at_the_rate():
    mask, _ = dropout.generate_masks(key(0), 20_000, [5, 5], 0.3)
    np.testing.assert_allclose(np.mean(mask == 0), 0.3, atol=0.02)
    np.testing.assert_allclose(mask.mean(), 1, atol=0.03)


def test_rate_zero_is_a_plain_mlp():
    enn = dropout.MLPDropoutENN([4, 2], 0.0)
    first, second = (output(enn, key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_running_sums():
    values = [3, 1, 2]
    assert dropout.cummulative_sum(values) == [3, 4, 6]
    assert values == [3, 1, 2]
    assert dropout.cummulative_sum([]) == []


@pytest.mark.parametrize("dropout_input", [True, False])
def test_layers_before_the_first_mask_run_once(dropout_input):
    sizes = [32, 32, 2]
    inputs = jnp.ones((8, 64))
    enn = dropout.MLPDropoutENN(sizes, 0.5, dropout_input)
    first, others = mlp_flops(8, 64, 32), mlp_flops(8, 32, 32, 2)
    masks = flops(
        jax.vmap(lambda z: dropout.generate_masks(z, 64, sizes, 0.5)),
        jax.random.split(key(0), 100),
    )
    layers = 100 * (first + others) if dropout_input else first + 100 * others
    assert flops_at_indices(enn, inputs) <= 1.1 * (layers + masks)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_zero_to_one(rate):
    with pytest.raises(ValueError, match="dropout_rate"):
        dropout.MLPDropoutENN([4, 2], rate)
    with pytest.raises(ValueError, match="dropout_rate"):
        dropout.generate_masks(key(0), 3, [4, 2], rate)


def test_wrong_sizes_and_ranks():
    with pytest.raises(ValueError, match="output_sizes"):
        dropout.MLPDropoutENN([4, 0])
    with pytest.raises(ValueError, match="output_sizes"):
        dropout.MLPDropoutENN([])
    with pytest.raises(ValueError, match="input_size"):
        dropout.generate_masks(key(0), 0, [4, 2], 0.1)
    with pytest.raises(ValueError, match=r"inputs must have shape \[batch, \.\.\.\]"):
        dropout.MLPDropoutENN([4, 2]).init(key(0), jnp.ones(3), key(1))


@pytest.mark.parametrize("index", [0, None, np.ones(2), np.zeros((1, 2), np.uint32)])
def test_an_index_that_is_no_key(index):
    with pytest.raises(ValueError, match="index must be one PRNG key, got"):
        dropout.MLPDropoutENN([4, 2]).init(key(0), jnp.ones((2, 3)), index)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_masks_depend_on_the_index_alone_under_any_generator(impl):
    with jax.default_prng_impl(impl):
        enn = dropout.MLPDropoutENN([4, 2], 0.5)
        keys = jax.random.split(key(7), 4)
        params, state = init(enn)
        forward = jax.vmap(enn.apply, in_axes=[None, None, None, 0])
        together, _ = forward(params, state, X, keys)
        for i in range(4):
            alone, _ = enn.apply(params, state, X, keys[i])
            np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-6)
