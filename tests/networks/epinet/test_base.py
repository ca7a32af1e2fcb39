from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import base
from enn.networks.base import OutputWithPrior
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.ensembles import EnsembleWithState
from enn.networks.epinet.base import EpinetWithState, combine_base_epinet_as_enn
from enn.networks.epinet.last_layer import MLPEpinetWithPrior, parse_base_hidden
from enn.networks.indexers import EnsembleIndexer, GaussianIndexer, PrngIndexer
from enn.networks.utils import wrap_net_fn_as_enn
from tests.networks.epinet.toys import NUM_CLASSES, Checkpoint, X, stateful_base
from tests.support import fast, golden

INDEX = jnp.array([0.5, -1.0, 2.0])
EPINET_MODULES = {
    f"{part}_epinet/~/mlp/~/linear_{i}" for part in ("train", "prior") for i in (0, 1)
}


def _epinet() -> EpinetWithState:
    return MLPEpinetWithPrior(3, NUM_CLASSES, [4])


def _combine(saved: Checkpoint, **kwargs: Any) -> base.EpistemicNetwork:
    epinet = kwargs.pop("epinet", None) or _epinet()
    return combine_base_epinet_as_enn(
        saved.checkpoint, epinet, parse_base_hidden, **kwargs
    )


def _batch_norm_epinet(name: str = "epinet") -> EpinetWithState:
    def forward(x: Any, index: Any, hidden: Any) -> OutputWithPrior:
        out = hk.Linear(NUM_CLASSES, name=f"{name}_linear")(hidden)
        norm = hk.BatchNorm(True, True, 0.9, name=f"{name}_norm")
        return OutputWithPrior(norm(out, is_training=True) * jnp.sum(index))

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    return EpinetWithState(transformed.apply, transformed.init, GaussianIndexer(3))


@pytest.mark.strict
@pytest.mark.parametrize("freeze_base", [True, False])
def test_output_is_the_scaled_base_plus_the_epinet(freeze_base: bool) -> None:
    saved, epinet = Checkpoint(stateful_base()), _epinet()
    enn = _combine(saved, epinet=epinet, base_scale=2.5, freeze_base=freeze_base)
    params, state = fast.random_params(enn, X, seed=7)
    # A base that trains has the parameters given, a frozen one those it was saved with.
    params = params | saved.variables[0] if not freeze_base else params
    out, _ = jax.jit(enn.apply)(params, state, X, INDEX)
    base_out, _ = jax.jit(saved.enn.apply)(*saved.variables, X, None)
    hidden = base_out.extra["final_out"]
    epi, _ = jax.jit(epinet.apply)(params, state, X, INDEX, hidden)
    np.testing.assert_allclose(out.train, 2.5 * base_out.train + epi.train, atol=1e-5)
    np.testing.assert_allclose(out.prior, 2.5 * base_out.prior + epi.prior, atol=1e-5)
    assert out.extra == {}
    assert enn.indexer is epinet.indexer


def test_frozen_base_is_no_part_of_parameters_and_state() -> None:
    enn = _combine(Checkpoint(stateful_base()))
    params, state = fast.shapes(enn, X)
    assert set(params) == EPINET_MODULES
    assert state == {}


def test_trained_base_starts_from_its_checkpoint() -> None:
    saved = Checkpoint(stateful_base())
    enn = _combine(saved, freeze_base=False)
    params, state = jax.jit(enn.init)(golden.keys(0), X, INDEX)
    base_params, base_state = saved.variables
    assert set(params) == {*base_params, *EPINET_MODULES}
    base_part = {name: params[name] for name in base_params}
    jax.tree.map(np.testing.assert_array_equal, base_part, base_params)
    jax.tree.map(np.testing.assert_array_equal, state, base_state)


@pytest.mark.parametrize("epinet", [_epinet(), _batch_norm_epinet()])
def test_state_of_a_trained_base_advances(epinet: EpinetWithState) -> None:
    # Once, the epinet's copy of the base's state overrode its update.
    saved = Checkpoint(stateful_base())
    enn = _combine(saved, epinet=epinet, freeze_base=False)
    params, state = fast.random_params(enn, X)
    _, new_state = jax.jit(enn.apply)(params, state, X, INDEX)
    _, base_state = jax.jit(saved.enn.apply)(params, state, X, None)
    assert set(new_state) == set(state)
    for module, values in new_state.items():
        assert values["counter"] == 1
        if module in saved.variables[1]:
            expected = base_state[module]["average"]
            np.testing.assert_allclose(values["average"], expected, rtol=1e-5)


def test_epinet_with_state_trains_on_an_ensemble() -> None:
    # Its scalar counters have no axis of members.
    member = stateful_base()
    model = hk.TransformedWithState(
        lambda key, x: member.init(key, x, None),
        lambda params, state, x: member.apply(params, state, x, None),
    )
    saved = Checkpoint(EnsembleWithState(model, 2))
    enn = _combine(saved, epinet=_batch_norm_epinet(), freeze_base=False, base_index=1)
    params, state = fast.random_params(enn, X)
    _, new_state = jax.jit(enn.apply)(params, state, X, INDEX)
    counters = {name: values["counter"] for name, values in new_state.items()}
    np.testing.assert_array_equal(counters["base_norm/~/mean_ema"], [0, 1])
    np.testing.assert_array_equal(counters["epinet_norm/~/mean_ema"], 1)


def test_gradients_reach_a_trained_base_through_the_epinet_unless_stopped() -> None:
    saved = Checkpoint(stateful_base())

    def base_grads(**kwargs: Any) -> Any:
        enn = _combine(saved, freeze_base=False, base_scale=0.0, **kwargs)
        params, state = fast.random_params(enn, X)

        def loss(params: hk.Params) -> jax.Array:
            return jnp.sum(jnp.sin(enn.apply(params, state, X, INDEX)[0].train))

        grads = jax.jit(jax.grad(loss))(params)
        return np.abs(grads["base_linear"]["w"]).max()

    assert base_grads() > 0
    assert base_grads(stop_hidden_gradient=True) == 0


def test_base_of_plain_arrays_reaches_the_parser_converted() -> None:
    # Once, in apply only: init handed the parser the array itself.
    plain = wrap_net_fn_as_enn(lambda x: hk.Linear(NUM_CLASSES, name="plain")(x))
    seen = []

    def parse_hidden(out: Any) -> Any:
        seen.append(type(out))
        return out.train

    enn = combine_base_epinet_as_enn(
        Checkpoint(plain).checkpoint, _epinet(), parse_hidden
    )
    jax.eval_shape(enn.apply, *fast.random_params(enn, X), X, INDEX)
    assert set(seen) == {OutputWithPrior}


def test_checkpoint_is_loaded_once_and_not_before_it_is_needed() -> None:
    saved = Checkpoint(stateful_base())
    enn = _combine(saved)
    assert saved.num_loads == 0
    params, state = jax.jit(enn.init)(golden.keys(0), X, INDEX)
    traced = jax.jit(enn.apply)(params, state, X, INDEX)[0]
    # Values loaded inside jax.jit must not be its tracers.
    eager = enn.apply(params, state, X, INDEX)[0]
    np.testing.assert_allclose(eager.preds, traced.preds, atol=1e-5)
    assert saved.num_loads == 1


@pytest.mark.parametrize("base_index", [None, 2])
def test_base_index_is_drawn_with_key_0_unless_given(base_index: int | None) -> None:
    indexer = EnsembleIndexer(1000)

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        return jnp.full((len(inputs), NUM_CLASSES), index, jnp.float32), state

    indexed = base.EpistemicNetwork(apply, lambda key, x, z: ({}, {}), indexer)
    checkpoint = EnnCheckpoint("base", lambda: ({}, {}), lambda: indexed)
    epinet = EpinetWithState(
        lambda params, state, x, z, hidden: (OutputWithPrior(0 * hidden), state),
        lambda key, x, z, hidden: ({}, {}),
        PrngIndexer(),
    )
    enn = combine_base_epinet_as_enn(
        checkpoint, epinet, lambda out: out.train, base_index
    )
    out, _ = jax.jit(enn.apply)({}, {}, X, golden.keys(5))
    expected = indexer(golden.keys(0)) if base_index is None else base_index
    np.testing.assert_array_equal(out.train, np.full((4, 2), expected))


def test_modules_of_one_name_raise_where_the_base_trains() -> None:
    saved = Checkpoint(stateful_base())
    epinet = _batch_norm_epinet("base")
    enn = _combine(saved, epinet=epinet, freeze_base=False)
    with pytest.raises(ValueError, match="module named 'base_linear'"):
        jax.eval_shape(enn.init, golden.keys(0), X, INDEX)
    params, _ = fast.shapes(_combine(saved, epinet=epinet), X)
    assert set(params) == {"base_linear", "base_norm"}


@pytest.mark.parametrize("lacking", [0, 1])
def test_parameters_or_state_without_the_base_raise(lacking: int) -> None:
    saved = Checkpoint(stateful_base())
    enn = _combine(saved, freeze_base=False)
    variables = [dict(tree) for tree in fast.random_params(enn, X)]
    removed = min(saved.variables[lacking])
    del variables[lacking][removed]
    with pytest.raises(ValueError, match=f"lack the module '{removed}'"):
        enn.apply(*variables, X, INDEX)  # pyrefly: ignore[bad-argument-count]


def test_networks_compare_and_hash_by_identity() -> None:
    first, second = _epinet(), _epinet()
    assert first == first
    assert len({first, second}) == 2
