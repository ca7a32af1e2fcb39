import functools
import logging
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import losses, networks
from enn.networks import ensembles, priors
from enn.networks.base import EnnArray, EnnNoState, OutputWithPrior
from enn.networks.epinet.mlp import make_mlp_epinet
from enn.networks.priors import is_trainable, trainable_mask
from tests.support import golden
from tests.support.cost import flops, mlp_flops
from tests.support.fast import X, assert_output_starts, compiled, init, key, output

WIDE = jnp.ones((64, 32))


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def _start(values):
    return np.ravel(values)[:2]


@pytest.mark.slow
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


@pytest.mark.slow
def test_documented_values_of_a_random_mlp():
    prior_fn = networks.get_random_mlp_with_index(X, jnp.ones(4), key(2))
    out = prior_fn(X, jnp.ones(4))
    assert out.shape == (2, 1)
    _close(_start(out), [-1.342821, -2.129829], rtol=2e-5)


@pytest.mark.slow
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


class Doubled(OutputWithPrior):
    __slots__ = ()

    @property
    def preds(self):
        return 2 * self.train + self.prior


def _network(out):
    return EnnArray(
        lambda params, state, inputs, index: (out, {"new": {"state": 1}}),
        lambda *args: ({}, {}),
        networks.GaussianIndexer(2),
    )


def _prior_fn(inputs, index):
    return inputs * index[0] + index[1]


Z = np.array([2.0, 0.5], np.float32)


def test_a_prior_is_added_to_a_plain_output():
    enn = _network(X)
    with_prior = networks.EnnWithAdditivePrior(enn, _prior_fn, 3.0)
    out, state = with_prior.apply({}, {}, X, Z)
    assert type(out) is OutputWithPrior
    _close(out.train, X)
    _close(out.prior, 3 * (2 * X + 0.5))
    assert state == {"new": {"state": 1}}
    assert (with_prior.init, with_prior.indexer) == (enn.init, enn.indexer)


def test_a_prior_is_added_to_the_prior_of_the_output():
    enn = _network(Doubled(X, 10 * X, {"hidden": X}))
    out = networks.EnnWithAdditivePrior(enn, _prior_fn).apply({}, {}, X, Z)[0]
    assert type(out) is Doubled
    _close(out.prior, 12 * X + 0.5)
    _close(out.preds, 14 * X + 0.5)
    _close(out.extra["hidden"], X)


def test_networks_without_state_get_the_same_prior():
    enn = EnnNoState(lambda p, x, z: p * x, object(), networks.GaussianIndexer(2))
    with_prior = networks.EnnNoStateWithAdditivePrior(enn, _prior_fn, 3.0)
    out = with_prior.apply(5.0, X, Z)
    _close(out.train, 5 * X)
    _close(out.prior, 3 * (2 * X + 0.5))
    assert (with_prior.init, with_prior.indexer) == (enn.init, enn.indexer)
    assert isinstance(with_prior, EnnNoState)


def _module_enn(prior_scale):
    def forward(x):
        net, prior_net = hk.nets.MLP([4, 2]), hk.nets.MLP([4, 2])
        return networks.NetworkWithAdditivePrior(net, prior_net, prior_scale)(x)

    return networks.wrap_net_fn_as_enn(forward)


def test_documented_values_of_a_module_with_prior():
    assert_output_starts(output(_module_enn(2.0), key(1)), [-0.080067, 0.205541])


def test_the_prior_module_is_in_the_tree_and_takes_the_first_keys():
    params, _ = init(_module_enn(2.0), index=key(1))
    layers = {
        "linear_0": {"w": (3, 4), "b": (4,)},
        "linear_1": {"w": (4, 2), "b": (2,)},
    }
    assert jax.tree.map(jnp.shape, params) == {
        f"{net}/~/{name}": layer
        for net in ("mlp", "mlp_1")
        for name, layer in layers.items()
    }
    alone = hk.transform(lambda x: hk.nets.MLP([4, 2])(x)).init(key(0), X)
    _close(params["mlp_1/~/linear_0"]["w"], alone["mlp/~/linear_0"]["w"])


@pytest.mark.strict
def test_no_gradient_reaches_the_prior_module():
    enn = _module_enn(2.0)
    params, _ = init(enn, index=key(1))

    def total(params):
        return jnp.sum(enn.apply(params, {}, X, None)[0] ** 2)

    grads = compiled(jax.grad(total))(params)
    for name, grad in grads.items():
        is_prior = name.startswith("mlp_1")
        assert np.any(grad["w"] != 0) != is_prior


def test_arguments_go_to_both_modules():
    def forward(x, factor):
        net = lambda x, factor: x * factor  # noqa: E731
        return networks.NetworkWithAdditivePrior(net, net, 10.0)(x, factor=factor)

    transformed = hk.without_apply_rng(hk.transform(forward))
    _close(transformed.apply({}, X, 3), 33 * X)


def test_the_warning_about_trainable_priors_is_logged_once(caplog):
    priors._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            init(_module_enn(1.0), index=key(1))
    assert [record.getMessage() for record in caplog.records] == [priors.WARN]


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


FNS = [lambda x: x, lambda x: 2 * x - 1, lambda x: -x, lambda x: x**2]
CHOICE = networks.combine_functions_choice_via_index(FNS)
LINEAR = networks.combine_functions_linear_in_index(FNS)


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


PARAMS = {
    name: {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    for name in ("base_mlp/~/linear_0", "prior_epinet/~/mlp/~/linear_0", "prior_conv_1")
}


@pytest.mark.parametrize(
    ("module_name", "trainable"),
    [
        ("train_epinet/~/mlp/~/linear_0", True),
        ("prior_epinet/~/mlp/~/linear_0", False),
        ("a_prior_epinet/~/mlp/~/linear_1", False),
        ("net/~/prior_epinet_1/~/mlp/~/linear_1", False),
        ("prior/~/linear_0", False),
        ("prior_1/~/linear_0", False),
        ("prior_conv", False),
        ("prior_conv_2", False),
        ("res_net/~/initial_conv", True),
        ("prior_epinet_trained/~/mlp", True),
        ("interior/~/linear_0", True),
        ("mlp_prior", True),
        ("prior_convolution", True),
    ],
)
def test_modules_are_told_apart_by_their_path(
    module_name: str, trainable: bool
) -> None:
    assert is_trainable(module_name, "w", jnp.ones(3)) is trainable


@pytest.mark.strict
def test_decoupled_weight_decay_leaves_priors_as_they_are() -> None:
    optimizer = optax.add_decayed_weights(0.1, mask=trainable_mask)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    for module_name, module in updates.items():
        expected = 0.1 if module_name.startswith("base") else 0
        for value in module.values():
            np.testing.assert_allclose(value, expected)


def test_masked_optimizer_updates_what_trains() -> None:
    optimizer = optax.masked(optax.scale(2.0), trainable_mask(PARAMS))
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS))
    assert float(updates["base_mlp/~/linear_0"]["w"][0, 0]) == 2
    assert float(updates["prior_epinet/~/mlp/~/linear_0"]["w"][0, 0]) == 1


def test_it_is_a_predicate_of_the_weight_decay_loss() -> None:
    def zero_loss(*args: Any) -> Any:
        return 0.0, ({}, {})

    decayed = losses.add_l2_weight_decay(zero_loss, 1.0, is_trainable)
    enn = make_mlp_epinet([4, 2], [5], 3, name="a")
    batch, key = None, golden.keys(0)
    kept, _ = decayed(enn, PARAMS, {}, batch, key)
    base_alone = {"base_mlp/~/linear_0": PARAMS["base_mlp/~/linear_0"]}
    expected, _ = decayed(enn, base_alone, {}, batch, key)
    assert kept == expected > 0


def test_epinet_parameters_that_get_no_gradient_are_those_masked_out() -> None:
    enn = make_mlp_epinet([4, 2], [5], 3, name="a")
    x, index = golden.normal(4, 3), jnp.ones(3)
    params, _ = jax.eval_shape(enn.init, golden.keys(0), x, index)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)

    def loss(params: hk.Params) -> Any:
        return enn.apply(params, {}, x, index)[0].preds.sum()

    grads = jax.jit(jax.grad(loss))(params)
    assert trainable_mask(params) == {
        name: {n: bool(np.any(value)) for n, value in module.items()}
        for name, module in grads.items()
    }
