import dataclasses
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from enn.checkpoints import utils
from enn.checkpoints.utils import EnnSampler, average_logits
from enn.networks.base import OutputWithPrior
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.ensembles import EnsembleWithState
from enn.networks.epinet.base import combine_base_epinet_as_enn
from enn.networks.epinet.checkpoint import EpinetCheckpoint
from enn.networks.epinet.last_layer import MLPEpinetWithPrior, parse_base_hidden
from enn.networks.epinet.mlp import make_mlp_epinet
from enn.networks.epinet.resnet import (
    ResnetFinalEpinetConfig,
    make_checkpoint_from_config,
)
from tests.support import cost, golden

X = np.asarray(golden.normal(4, 3))
NUM_SAMPLES = 5
NUM_HIDDEN = 64


def _base() -> EnsembleWithState:
    """Two networks with hidden features, a prior and state."""

    def forward(x: jax.Array) -> OutputWithPrior:
        hidden = jax.nn.relu(hk.Linear(NUM_HIDDEN, name="base_linear")(x))
        shift = hk.get_state("shift", (2,), init=jnp.zeros)
        hk.set_state("shift", shift + 1)
        logits = hk.Linear(2, name="base_logits")(hidden) + shift[None]
        return OutputWithPrior(logits, jnp.cos(logits), {"final_out": hidden})

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    return EnsembleWithState(model, 2)


class Loader:
    """Parameters of a network or an epinet, counting how often they are loaded."""

    def __init__(self, shapes: Any):
        draw = np.random.default_rng(1)
        self.variables = jax.tree.map(
            lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes
        )
        self.num_loads = 0

    def __call__(self) -> Any:
        self.num_loads += 1
        return self.variables


@pytest.fixture(scope="module")
def epinet_cpt() -> EpinetCheckpoint:
    key = jax.random.PRNGKey(0)
    enn, epinet = _base(), MLPEpinetWithPrior(3, 2, [4], drop_inputs=True)
    base_load = Loader(jax.eval_shape(enn.init, key, X, 0))
    hidden = np.ones((4, NUM_HIDDEN))
    load = Loader(jax.eval_shape(epinet.init, key, X, np.ones(3), hidden))
    return EpinetCheckpoint(
        name="epinet",
        load_fn=load,
        epinet_ctor=lambda: epinet,
        parse_hidden=parse_base_hidden,
        base_cpt=EnnCheckpoint("base", base_load, lambda: enn),
        base_index=1,
        base_scale=1.25,
        tuned_eval_temperature=0.5,
    )


@pytest.mark.strict
def test_average_is_that_of_probabilities() -> None:
    logits = golden.normal(3, 4, 5)
    averaged = average_logits(logits)
    probs = scipy.special.softmax(np.asarray(logits), axis=-1).mean(axis=0)
    np.testing.assert_allclose(averaged, np.log(probs), rtol=1e-5)


@pytest.mark.strict
def test_average_of_unlikely_classes_is_finite() -> None:
    # Probabilities of e^-200 underflow: this was -inf.
    logits = np.array([[[0.0, 200.0]], [[0.0, 200.0]]], np.float32)
    np.testing.assert_allclose(average_logits(logits), [[-200.0, 0.0]])


def test_average_of_other_shapes_raises() -> None:
    with pytest.raises(ValueError, match=r"array must have shape \[num_enn_samples, b"):
        average_logits(np.ones((2, 3)))


def _one_by_one(enn: Any, variables: Any, key: Any) -> list[np.ndarray]:
    """Predictions at the indices of a sampler, each from a pass of its own."""

    @jax.jit
    def predict(variables: Any, key: Any) -> Any:
        return enn.apply(*variables, X, enn.indexer(key))[0].preds

    keys = jax.random.split(key, NUM_SAMPLES)
    return [predict(variables, keys[i]) for i in range(NUM_SAMPLES)]


@pytest.mark.slow
@pytest.mark.strict
def test_sampler_of_a_network_is_one_pass_an_index() -> None:
    enn = make_mlp_epinet([4, 2], [3], 3)
    load = Loader(jax.eval_shape(enn.init, golden.keys(0), X, np.ones(3)))
    checkpoint = EnnCheckpoint("name", load, lambda: enn)
    key = jax.random.PRNGKey(4)
    expected = _one_by_one(enn, load.variables, key)
    for batch_z, sampler_key in [
        (None, key),
        (1, jax.random.wrap_key_data(key)),
        (3, key),
    ]:
        num_loads = load.num_loads
        sampler = utils.make_enn_sampler_from_checkpoint(
            checkpoint, NUM_SAMPLES, batch_z=batch_z
        )
        assert isinstance(sampler, EnnSampler)
        logits = sampler(X, sampler_key)
        assert logits.shape == (NUM_SAMPLES, 4, 2)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        assert load.num_loads == num_loads + 1


def test_sampler_of_an_ensemble_takes_the_members_of_its_indices(
    epinet_cpt: EpinetCheckpoint,
) -> None:
    checkpoint = epinet_cpt.base_cpt
    sampler = utils.make_enn_sampler_from_checkpoint(checkpoint, NUM_SAMPLES)
    enn, key = _base(), jax.random.PRNGKey(4)
    indices = jax.vmap(enn.indexer)(jax.random.split(key, NUM_SAMPLES))
    assert {*np.asarray(indices)} == {0, 1}
    expected = _one_by_one(enn, checkpoint.load_fn(), key)
    np.testing.assert_allclose(sampler(X, key), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize(("base_index", "batch_z"), [(None, None), (1, 2)])
def test_sampler_of_an_epinet_is_one_pass_an_index(
    epinet_cpt: EpinetCheckpoint, base_index: int | None, batch_z: int | None
) -> None:
    checkpoint = dataclasses.replace(epinet_cpt, base_index=base_index)
    sampler = utils.make_epinet_sampler_from_checkpoint(
        checkpoint, NUM_SAMPLES, batch_z=batch_z
    )
    assert isinstance(sampler, EnnSampler)
    # By default the base network has the index drawn with key 0.
    base_index = _base().indexer(golden.keys(0)) if base_index is None else base_index
    enn = combine_base_epinet_as_enn(
        checkpoint.base_cpt,
        checkpoint.epinet_ctor(),
        checkpoint.parse_hidden,
        base_index,
        checkpoint.base_scale,
    )
    key = jax.random.PRNGKey(4)
    logits = sampler(X, key)
    assert logits.shape == (NUM_SAMPLES, 4, 2)
    expected = _one_by_one(enn, checkpoint.load_fn(), key)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_forward_functions_average_at_fixed_indices(
    epinet_cpt: EpinetCheckpoint,
) -> None:
    base_cpt = dataclasses.replace(epinet_cpt.base_cpt, tuned_eval_temperature=0.8)
    sampler = utils.make_epinet_sampler_from_checkpoint(epinet_cpt, 7)
    base_sampler = utils.make_enn_sampler_from_checkpoint(base_cpt, 7)
    for kwargs in ({}, {"seed": 3, "temperature_rescale": True}):
        temperature = 0.5 if kwargs else 1.0
        logits = sampler(X, jax.random.PRNGKey(kwargs.get("seed", 44)))
        forward = utils.make_epinet_forward_fn(epinet_cpt, 7, **kwargs)
        expected = average_logits(np.asarray(logits) / temperature)
        np.testing.assert_allclose(forward(X), expected, rtol=1e-4, atol=1e-6)

        temperature = 0.8 if kwargs else 1.0
        logits = base_sampler(X, jax.random.PRNGKey(kwargs.get("seed", 0)))
        out = utils.load_checkpoint_as_logit_fn(base_cpt, 7, **kwargs)(X)
        expected = average_logits(np.asarray(logits) / temperature)
        np.testing.assert_allclose(out.train, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(out.preds, out.train)


@pytest.mark.slow
def test_temperature_divides_where_it_is_asked_for(
    epinet_cpt: EpinetCheckpoint,
) -> None:
    base_cpt = dataclasses.replace(epinet_cpt.base_cpt, tuned_eval_temperature=0.8)
    epinet_cpt = dataclasses.replace(epinet_cpt, base_cpt=base_cpt)
    key = jax.random.PRNGKey(0)
    for make, checkpoint, temperature in [
        (utils.make_enn_sampler_from_checkpoint, base_cpt, 0.8),
        # That of the epinet, and not of its base network.
        (utils.make_epinet_sampler_from_checkpoint, epinet_cpt, 0.5),
    ]:
        untuned = dataclasses.replace(checkpoint, tuned_eval_temperature=None)
        plain = np.asarray(make(checkpoint, 2)(X, key))
        np.testing.assert_allclose(
            make(checkpoint, 2, temperature_rescale=True)(X, key),
            plain / temperature,
            rtol=1e-5,
        )
        np.testing.assert_array_equal(
            make(untuned, 2, temperature_rescale=True)(X, key), plain
        )


def test_base_network_runs_once_for_many_indices(epinet_cpt: EpinetCheckpoint) -> None:
    def flops(num_samples: int) -> float:
        sampler = utils.make_epinet_sampler_from_checkpoint(
            epinet_cpt, num_samples, batch_z=num_samples
        )
        return cost.flops(sampler.func, *sampler.args, X, jax.random.PRNGKey(0))

    one_more_index = (flops(100) - flops(50)) / 50
    assert one_more_index < 0.3 * cost.mlp_flops(4, 3, NUM_HIDDEN, 2)


def test_parameters_are_no_constants(epinet_cpt: EpinetCheckpoint) -> None:
    sampler = utils.make_epinet_sampler_from_checkpoint(epinet_cpt, 2)
    traced = jax.make_jaxpr(sampler.func)(*sampler.args, X, jax.random.PRNGKey(0))
    inner = traced.jaxpr.eqns[0].params["jaxpr"]
    assert traced.consts == inner.consts == []
    num_variables = len(jax.tree.leaves(sampler.args))
    assert len(inner.jaxpr.invars) == num_variables + 2


def test_everything_loads_once(epinet_cpt: EpinetCheckpoint) -> None:
    loads = [epinet_cpt.load_fn, epinet_cpt.base_cpt.load_fn]
    before = [load.num_loads for load in loads]
    sampler = utils.make_epinet_sampler_from_checkpoint(epinet_cpt, 2)
    for _ in range(2):
        sampler(X, jax.random.PRNGKey(0))
    assert [load.num_loads for load in loads] == [n + 1 for n in before]


def test_one_file_for_epinet_and_base_loads_once(epinet_cpt: EpinetCheckpoint) -> None:
    base_cpt = epinet_cpt.base_cpt
    (base_params, state), (params, _) = base_cpt.load_fn(), epinet_cpt.load_fn()
    load = Loader(({}, {}))
    load.variables = ({**base_params, **params}, state)
    config = ResnetFinalEpinetConfig(base_cpt, 3, 2, [4], freeze_base=False)
    checkpoint = make_checkpoint_from_config("trained", load, config)
    sampler = utils.make_epinet_sampler_from_checkpoint(checkpoint, NUM_SAMPLES)
    assert load.num_loads == 1
    expected = utils.make_epinet_sampler_from_checkpoint(
        dataclasses.replace(epinet_cpt, base_index=None, base_scale=1.0), NUM_SAMPLES
    )
    key = jax.random.PRNGKey(2)
    np.testing.assert_allclose(sampler(X, key), expected(X, key), rtol=1e-5)


def test_wrong_arguments_raise(epinet_cpt: EpinetCheckpoint) -> None:
    for make, checkpoint in [
        (utils.make_enn_sampler_from_checkpoint, epinet_cpt.base_cpt),
        (utils.make_epinet_sampler_from_checkpoint, epinet_cpt),
        (utils.make_epinet_forward_fn, epinet_cpt),
        (utils.load_checkpoint_as_logit_fn, epinet_cpt.base_cpt),
    ]:
        with pytest.raises(ValueError, match="num_enn_samples must be an integer >= 1"):
            make(checkpoint, 0)
    sampler = utils.make_epinet_sampler_from_checkpoint(epinet_cpt, 2, batch_z=0)
    with pytest.raises(ValueError, match="batch_z must be an integer >= 1"):
        sampler(X, jax.random.PRNGKey(0))


def test_outputs_of_another_rank_raise() -> None:
    enn = make_mlp_epinet([4, 2], [3], 3)
    apply = enn.apply

    def summed(*args: Any) -> Any:
        out, state = apply(*args)
        return out.preds.sum(axis=-1), state

    load = Loader(jax.eval_shape(enn.init, golden.keys(0), X, np.ones(3)))
    enn = dataclasses.replace(enn, apply=summed)
    sampler = utils.make_enn_sampler_from_checkpoint(
        EnnCheckpoint("name", load, lambda: enn), 2
    )
    with pytest.raises(ValueError, match=r"outputs must have shape .* got \[2, 4\]"):
        sampler(X, jax.random.PRNGKey(0))
