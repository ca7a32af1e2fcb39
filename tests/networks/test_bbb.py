import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.bbb import make_bbb_enn
from enn.networks.mlp import transformed_mlp
from tests.support import golden
from tests.support.cost import flops_at_indices, mlp_flops
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    init,
    key,
    output,
)


def test_golden_values():
    enn = make_bbb_enn([7, 2], golden.X5, temperature=2.0)
    golden.assert_enn_matches("bbb", enn)


def test_anchor():
    out = output(make_bbb_enn([4, 2], X))
    assert_output_starts(out, [-0.039716, 0.103560], [0, 0])


def test_parameters_start_at_an_mlp_with_standard_deviation_one_percent():
    params, state = init(make_bbb_enn([4, 2], X, seed=5))
    assert not state
    assert list(params) == ["hyper_fn/diagonal_linear"]
    diagonal = params["hyper_fn/diagonal_linear"]
    np.testing.assert_allclose(np.log1p(np.exp(diagonal["w"])), 0.01, rtol=1e-4)
    mlp = compiled(transformed_mlp([4, 2]).init)(key(5), X)
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(mlp)]
    np.testing.assert_allclose(diagonal["b"], np.concatenate(leaves), rtol=1e-5)


@pytest.mark.strict
def test_output_is_that_of_the_sampled_parameters_over_temperature():
    inputs = jax.random.normal(key(1), (4, 3, 1))
    enn = make_bbb_enn([4, 2], inputs, temperature=0.5)
    index = enn.indexer(key(2))
    assert index.shape == (26,)
    params, state = init(enn, inputs)
    diagonal = params["hyper_fn/diagonal_linear"]
    theta = diagonal["b"] + np.log1p(np.exp(diagonal["w"])) * index
    out, _ = compiled(enn.apply)(params, state, inputs, index)
    np.testing.assert_allclose(out.extra["hyper_index"], theta, rtol=1e-4, atol=1e-6)
    sampled = out.extra["base_net_params"]
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(sampled)]
    np.testing.assert_allclose(np.concatenate(leaves), theta, rtol=1e-4, atol=1e-6)
    expected = transformed_mlp([4, 2]).apply(sampled, inputs) / 0.5
    np.testing.assert_allclose(out.preds, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.prior, 0)


def test_key_of_init_plays_no_part_but_the_seed_does():
    first, second = (init(make_bbb_enn([4, 2], X), seed=seed)[0] for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other, _ = init(make_bbb_enn([4, 2], X, seed=1))
    diagonal = "hyper_fn/diagonal_linear"
    assert np.any(other[diagonal]["b"] != first[diagonal]["b"])


def test_parameters_are_sampled_and_applied_once_for_an_index():
    inputs = jnp.ones((64, 32))
    num_params = 33 * 32 + 33 * 2
    bound = 100 * (2 * num_params + mlp_flops(64, 32, 32, 2))
    assert flops_at_indices(make_bbb_enn([32, 2], inputs), inputs) <= 1.1 * bound


@pytest.mark.parametrize("shape", [(25,), (27,), ()])
def test_wrong_index(shape):
    with pytest.raises(ValueError, match=r"index must have shape \[26\]"):
        make_bbb_enn([4, 2], X).init(key(0), X, jnp.ones(shape))


@pytest.mark.parametrize("sizes", [[], [4, 0]])
def test_wrong_sizes(sizes):
    with pytest.raises(ValueError, match="output_sizes"):
        make_bbb_enn(sizes, X)
