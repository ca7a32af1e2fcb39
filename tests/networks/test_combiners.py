from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import base
from enn.networks.base import OutputWithPrior
from enn.networks.combiners import combine_naive_enn, make_optimized_forward
from enn.networks.ensembles import EnsembleWithState
from enn.networks.epinet.mlp import make_mlp_epinet
from enn.networks.indexers import EnsembleIndexer, GaussianIndexer, PrngIndexer
from enn.networks.utils import (
    wrap_enn_as_enn_no_state,
    wrap_enn_no_state_as_enn,
    wrap_net_fn_as_enn,
)
from tests.support import cost, fast, golden

X = golden.X5


def _mlp(name: str, *sizes: int) -> base.EpistemicNetwork:
    return wrap_net_fn_as_enn(lambda x: hk.nets.MLP(sizes, name=name)(x))


def _batch_norm_net(name: str, size: int) -> base.EpistemicNetwork:
    def forward(x: jax.Array) -> jax.Array:
        x = hk.Linear(size, name=f"{name}_linear")(x)
        norm = hk.BatchNorm(True, True, 0.9, name=f"{name}_norm")
        return norm(x, is_training=True)

    return wrap_net_fn_as_enn(forward)


def _noisy(name: str) -> base.EpistemicNetwork:
    """Outputs the noise that its key gives, under a module of that name."""

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        return jax.random.normal(index, inputs.shape), state

    def init(key: Any, inputs: Any, index: Any) -> Any:
        return {name: {"w": jnp.zeros(())}}, {}

    return base.EpistemicNetwork(apply, init, PrngIndexer())


def _keep_both() -> base.EpistemicNetwork:
    """A head that outputs its input beside its own noise."""
    noisy = _noisy("head")

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        noise, state = noisy.apply(params, state, inputs, index)
        return OutputWithPrior(inputs, extra={"noise": noise}), state

    return base.EpistemicNetwork(apply, noisy.init, noisy.indexer)


def test_epinet_on_a_torso_gives_the_golden_numbers() -> None:
    torso, head = _mlp("torso", 7), make_mlp_epinet([4, 3], [4], index_dim=2)
    enn = combine_naive_enn(head, torso)
    index = enn.indexer(golden.keys(1))
    params, state = jax.jit(enn.init)(golden.keys(0), X, index)
    out, _ = jax.jit(enn.apply)(params, state, X, index)
    forward = make_optimized_forward(head, torso, 5, golden.keys(7))
    golden.assert_matches(
        "combiners",
        {
            "params": params,
            "out": golden.output(out),
            "fwd": forward(params, state, X),
        },
    )


@pytest.mark.strict
def test_states_of_base_and_head_both_advance() -> None:
    # Once, the head's copy of the base's state overrode its update.
    torso, head = _batch_norm_net("torso", 4), _batch_norm_net("head", 2)
    enn = combine_naive_enn(head, torso)
    params, state = fast.random_params(enn, X)
    _, new_state = jax.jit(enn.apply)(params, state, X, golden.keys(1))
    hidden, torso_state = jax.jit(torso.apply)(params, state, X, golden.keys(1))
    _, head_state = jax.jit(head.apply)(params, state, hidden, golden.keys(1))
    for module, values in new_state.items():
        alone = (torso_state if module.startswith("torso") else head_state)[module]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), values, alone)
        assert values["counter"] == 1


@pytest.mark.parametrize("stateless_part", ["base", "head"])
def test_a_part_without_state_keeps_the_state_of_the_other(stateless_part: str) -> None:
    # Adapters of networks without state return an empty one.
    def without_state(name: str, size: int) -> base.EpistemicNetwork:
        return wrap_enn_no_state_as_enn(wrap_enn_as_enn_no_state(_mlp(name, size)))

    if stateless_part == "base":
        enn = combine_naive_enn(_batch_norm_net("head", 2), without_state("torso", 4))
    else:
        enn = combine_naive_enn(without_state("head", 2), _batch_norm_net("torso", 4))
    params, state = fast.random_params(enn, X)
    _, new_state = jax.jit(enn.apply)(params, state, X, golden.keys(1))
    assert set(new_state) == set(state) != set()
    assert all(values["counter"] == 1 for values in new_state.values())


@pytest.mark.slow
@pytest.mark.parametrize("num_indices", [1, 4])
def test_an_ensemble_on_a_base_with_state(num_indices: int) -> None:
    # Once, the base's scalar counters were taken for members of the ensemble.
    def forward(x: jax.Array) -> jax.Array:
        norm = hk.BatchNorm(True, True, 0.9, name="head_norm")
        return norm(hk.Linear(2, name="head_linear")(x), is_training=True)

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    torso, head = _batch_norm_net("torso", 4), EnsembleWithState(model, 3)
    enn = combine_naive_enn(head, torso)
    params, state = fast.random_params(enn, X)
    keys = jax.random.split(golden.keys(1), num_indices)
    outs, states = jax.jit(jax.vmap(enn.apply, (None, None, None, 0)))(
        params, state, X, keys
    )
    hidden, _ = torso.apply(params, state, X, None)
    for i, key in enumerate(keys):
        member = head.indexer(key)
        own = [
            {k: v for k, v in tree.items() if "head" in k} for tree in (params, state)
        ]
        expected, _ = model.apply(
            *jax.tree.map(lambda leaf, k=member: leaf[k], own), hidden
        )
        np.testing.assert_allclose(outs[i], expected, rtol=1e-4, atol=1e-5)
        counters = states["head_norm/~/mean_ema"]["counter"][i]
        np.testing.assert_array_equal(counters, np.arange(3) == member)
    np.testing.assert_array_equal(states["torso_norm/~/mean_ema"]["counter"], 1)


@pytest.mark.parametrize("index", [0, None, np.ones(2, np.float32)])
def test_an_index_that_is_no_key_raises(index: Any) -> None:
    enn = combine_naive_enn(make_mlp_epinet([3], [4], 2), _mlp("torso", 4))
    params, state = fast.random_params(enn, X)
    with pytest.raises(ValueError, match="index must be one PRNG key, got"):
        enn.apply(params, state, X, index)


def test_modules_of_one_name_raise() -> None:
    enn = combine_naive_enn(_mlp("mlp", 2), _mlp("mlp", 4))
    with pytest.raises(ValueError, match="module named 'mlp/~/linear_0'"):
        jax.eval_shape(enn.init, golden.keys(0), X, golden.keys(1))


@pytest.mark.parametrize("indexer", [EnsembleIndexer(3), GaussianIndexer(2)])
@pytest.mark.parametrize("combine", [combine_naive_enn, make_optimized_forward])
def test_bases_whose_index_is_no_key_raise(indexer: Any, combine: Any) -> None:
    torso, head = _mlp("torso", 4), _mlp("head", 2)
    torso.indexer = indexer
    args = () if combine is combine_naive_enn else (3, golden.keys(0))
    with pytest.raises(ValueError, match="index of base_enn must be a PRNG key"):
        combine(head, torso, *args)


@pytest.mark.parametrize("key_fn", [jax.random.PRNGKey, jax.random.key])
def test_base_and_head_share_their_key_unless_asked_otherwise(key_fn: Any) -> None:
    for independent in (False, True):
        enn = combine_naive_enn(
            _keep_both(), _noisy("base"), independent_keys=independent
        )
        key = key_fn(1)
        params, state = enn.init(key_fn(0), X, key)
        out, _ = enn.apply(params, state, X, key)
        base_noise, head_noise = out.train, out.extra["noise"]
        assert np.array_equal(base_noise, head_noise) != independent
        correlation = np.corrcoef(np.ravel(base_noise), np.ravel(head_noise))[0, 1]
        assert (abs(correlation) < 0.5) == independent


@pytest.mark.parametrize("independent_keys", [False, True])
def test_optimized_forward_is_the_naive_one_at_the_split_keys(
    independent_keys: bool,
) -> None:
    torso, head = _mlp("torso", 4), make_mlp_epinet([3], [4], 2)
    enn = combine_naive_enn(head, torso, independent_keys=independent_keys)
    params, state = fast.random_params(enn, X)
    key = golden.keys(7)
    apply = jax.jit(enn.apply)
    naive = [
        apply(params, state, X, split_key)[0].preds
        for split_key in jax.random.split(key, 6)
    ]
    for batch_z in (None, 4):
        forward = make_optimized_forward(
            head, torso, 6, key, independent_keys=independent_keys, batch_z=batch_z
        )
        np.testing.assert_allclose(forward(params, state, X), naive, atol=1e-5)


def test_optimized_forward_takes_another_key() -> None:
    torso, head = _mlp("torso", 4), make_mlp_epinet([3], [4], 2)
    params, state = fast.random_params(combine_naive_enn(head, torso), X)
    first, second = (
        make_optimized_forward(head, torso, 3, golden.keys(seed)) for seed in (1, 2)
    )
    np.testing.assert_array_equal(
        first(params, state, X, golden.keys(2)), second(params, state, X)
    )


def test_output_of_the_base_is_parsed_as_asked() -> None:
    head = _mlp("head", 2)
    torso = base.EpistemicNetwork(
        lambda p, s, x, key: (OutputWithPrior(x, jnp.ones_like(x)), s),
        lambda key, x, index: ({}, {}),
        PrngIndexer(),
    )
    enn = combine_naive_enn(head, torso, lambda out: out.train - 10)
    params, state = fast.random_params(enn, X)
    out, _ = enn.apply(params, state, X, golden.keys(1))
    expected, _ = head.apply(params, state, X - 10, golden.keys(1))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("num_samples", [0, 2.5])
def test_wrong_number_of_samples_raises(num_samples: Any) -> None:
    with pytest.raises(ValueError, match="num_enn_samples"):
        make_optimized_forward(_mlp("a", 2), _mlp("b", 2), num_samples, golden.keys(0))


def test_base_runs_once_for_many_indices() -> None:
    torso, head = _mlp("torso", 64, 64, 4), make_mlp_epinet([3], [], 2)
    enn = combine_naive_enn(head, torso)
    one_torso = cost.flops_at_indices(torso, X, None)
    hidden = np.zeros((len(X), 4), np.float32)
    heads = cost.flops_at_indices(head, hidden, 100)
    both = cost.flops_at_indices(enn, X, 100)
    assert both < one_torso + 1.5 * heads < 4 * one_torso
