import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import networks
from tests.support.cost import flops, mlp_flops
from tests.support.fast import X

WIDE = jnp.ones((64, 32))
FNS = [lambda x: x, lambda x: 2 * x - 1, lambda x: -x, lambda x: x**2]
CHOICE = networks.combine_functions_choice_via_index(FNS)
LINEAR = networks.combine_functions_linear_in_index(FNS)


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


@pytest.mark.strict
def test_the_choice_prior_is_the_function_of_the_index():
    for i, fn in enumerate(FNS):
        _close(CHOICE(X, i), fn(X))
        _close(jax.jit(CHOICE)(X, i), fn(X))
    indices = jnp.array([3, 0, 2])
    outs = jax.vmap(CHOICE, in_axes=(None, 0))(X, indices)
    _close(outs, np.stack([FNS[i](X) for i in indices]))


def test_the_choice_prior_refuses_other_indices():
    for index in (4, -1, 0.0, np.ones(4)):
        with pytest.raises(ValueError, match="index"):
            CHOICE(X, index)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4))
def test_the_linear_prior_is_the_weighted_sum(index):
    x = np.asarray(X)
    expected = sum(z * fn(x) for z, fn in zip(index, FNS, strict=True))
    out = LINEAR(x, np.array(index, np.float32))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3)])
def test_the_linear_prior_takes_functions_of_any_rank(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    index = np.array([1.0, 0.5, 2.0, 0.0], np.float32)
    _close(LINEAR(x, index), x + 0.5 * (2 * x - 1) - 2 * x, rtol=1e-4)


@pytest.mark.parametrize("index", [np.ones(3), np.ones((1, 4)), np.ones(5), 1.0])
def test_the_linear_prior_refuses_indices_of_another_size(index):
    with pytest.raises(ValueError, match=r"index must have shape \[4\]"):
        LINEAR(X, index)


def test_the_linear_prior_takes_a_list():
    _close(LINEAR(X, [0.0, 0.0, 1.0, 0.0]), -X)


@pytest.mark.parametrize(
    "combine",
    [
        networks.combine_functions_choice_via_index,
        networks.combine_functions_linear_in_index,
    ],
)
def test_at_least_one_function_is_needed(combine):
    with pytest.raises(ValueError, match="prior_fns must hold at least one function"):
        combine([])


@pytest.mark.parametrize("num_indices", [2, 50])
def test_many_indices_evaluate_every_function_once(num_indices):
    fns = networks.make_mlp_ensemble_prior_fns([48, 10], WIDE, 4)
    linear = networks.combine_functions_linear_in_index(fns)
    choice = networks.combine_functions_choice_via_index(fns)
    functions = 4 * mlp_flops(64, 32, 48, 10)
    contraction = num_indices * mlp_flops(64 * 10, 4, 1)
    indices = jnp.ones((num_indices, 4))
    cost = flops(jax.vmap(linear, (None, 0)), WIDE, indices)
    assert cost <= 1.1 * (functions + contraction)
    over_jit = jax.vmap(jax.jit(linear), (None, 0))
    assert flops(over_jit, WIDE, indices) <= 1.1 * (functions + contraction)
    picking = 3 * num_indices * 64 * 10
    cost = flops(jax.vmap(choice, (None, 0)), WIDE, jnp.zeros(num_indices, int))
    assert cost <= 1.1 * functions + picking


def test_a_single_index_evaluates_one_function():
    fns = networks.make_mlp_ensemble_prior_fns([48, 10], WIDE, 4)
    choice = networks.combine_functions_choice_via_index(fns)
    assert flops(choice, WIDE, 1) <= 1.1 * mlp_flops(64, 32, 48, 10)
