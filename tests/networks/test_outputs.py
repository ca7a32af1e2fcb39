import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.utils import (
    parse_net_output,
    parse_to_output_with_prior,
    scale_enn_output,
)
from tests.support import golden

TRAIN = jnp.arange(6.0).reshape(3, 2)


class Expected(OutputWithPrior):
    """Predicts something else than `train + prior`."""

    __slots__ = ()

    @property
    def preds(self):
        return jnp.exp(self.train) + self.prior


def _network(out):
    def apply(params, state, inputs, index):
        return out, {"counter": {"calls": state["counter"]["calls"] + 1}}

    return EnnArray(apply, lambda *args: ({}, {}), networks.PrngIndexer())


def _apply(enn):
    return enn.apply({}, {"counter": {"calls": 4}}, TRAIN, None)


def test_golden_values_of_scaled_and_centered_networks():
    enn = networks.MLPEnsembleMatchedPrior([4, 2], golden.X5, num_ensemble=3)
    params, state = jax.jit(enn.init)(golden.keys(0), golden.X5, 0)
    x_train = 3 * golden.normal(20, 5, seed=11) + 1
    centered = networks.make_centered_enn(enn, x_train)
    scaled = networks.scale_enn_output(enn, 2.5)
    fwd = networks.make_batch_fwd(enn, num_enn_samples=7, seed=3)
    outs = {
        name: golden.output(jax.jit(made.apply)(params, state, golden.X5, 1)[0])
        for name, made in {"centered": centered, "scaled": scaled}.items()
    }
    batch_fwd = fwd(params, state, golden.X5)
    golden.assert_matches("centered_and_scaled", outs | {"batch_fwd": batch_fwd})


def test_predictions_are_parsed_from_every_kind_of_output():
    np.testing.assert_array_equal(parse_net_output(TRAIN), TRAIN)
    np.testing.assert_array_equal(
        parse_net_output(OutputWithPrior(TRAIN, TRAIN)), 2 * TRAIN
    )
    np.testing.assert_array_equal(
        parse_net_output(Expected(TRAIN, TRAIN)), jnp.exp(TRAIN) + TRAIN
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_plain_array_gets_a_zero_prior_of_its_dtype(dtype):
    out = parse_to_output_with_prior(TRAIN.astype(dtype))
    assert type(out) is OutputWithPrior
    assert out.prior.shape == (3, 2)
    assert out.prior.dtype == out.preds.dtype == dtype
    np.testing.assert_array_equal(out.prior, 0)
    assert out.extra == {}


def test_an_output_with_prior_stays_as_it_is():
    out = Expected(TRAIN, TRAIN, {"hidden": TRAIN})
    assert parse_to_output_with_prior(out) is out


def test_scaling_a_plain_output_keeps_it_plain():
    enn = _network(TRAIN)
    scaled = scale_enn_output(enn, -2.0)
    out, state = _apply(scaled)
    np.testing.assert_array_equal(out, -2 * TRAIN)
    assert state == {"counter": {"calls": 5}}
    assert (scaled.init, scaled.indexer) == (enn.init, enn.indexer)


@pytest.mark.strict
def test_scaling_multiplies_train_and_prior_but_no_extra_output():
    enn = _network(OutputWithPrior(TRAIN, 3 * TRAIN, {"hidden": TRAIN}))
    out = _apply(scale_enn_output(enn, 0.5))[0]
    np.testing.assert_array_equal(out.train, 0.5 * TRAIN)
    np.testing.assert_array_equal(out.prior, 1.5 * TRAIN)
    np.testing.assert_array_equal(out.extra["hidden"], TRAIN)


def test_scaled_outputs_of_other_types_become_plain_as_documented():
    out = _apply(scale_enn_output(_network(Expected(TRAIN, TRAIN)), 2.0))[0]
    assert type(out) is OutputWithPrior
    np.testing.assert_array_equal(out.preds, 4 * TRAIN)


def _two_outputs():
    def apply(params, state, inputs, index):
        train = inputs * params["net"]["w"]
        return OutputWithPrior(train, 2 * jnp.ones_like(train)), state

    def init(key, inputs, index):
        return {"net": {"w": jnp.float32(3)}}, {}

    return EnnArray(apply, init, networks.EnsembleIndexer(2))


def test_a_prior_is_scaled_output_by_output():
    x, params = np.ones([4, 2], np.float32), {"net": {"w": np.float32(3)}}
    out, _ = networks.scale_prior(_two_outputs(), [0.5, 0]).apply(params, {}, x, 0)
    np.testing.assert_array_equal(out.train, np.full([4, 2], 3.0))
    np.testing.assert_array_equal(out.prior, [[1.0, 0.0]] * 4)
    with pytest.raises(ValueError, match=r"have shape \[2\] of the outputs, got \[3\]"):
        networks.scale_prior(_two_outputs(), [1, 0, 0]).apply(params, {}, x, 0)


def test_a_learned_scale_is_one_number_for_all_inputs_and_trains():
    enn = networks.add_learned_scale(_two_outputs(), 2, init_scale=0.3)
    x = np.ones([4, 2], np.float32)
    params, state = enn.init(golden.keys(0), x, 0)
    out, _ = enn.apply(params, state, x, 0)
    np.testing.assert_allclose(jax.nn.softplus(out.preds[:, 2:]), 0.3, rtol=1e-6)
    np.testing.assert_array_equal(out.preds[:, :2], np.full([4, 2], 5.0))
    grad = jax.grad(lambda p: enn.apply(p, state, x, 0)[0].preds[:, 3].sum())(params)
    np.testing.assert_array_equal(grad["learned_scale"]["raw"], [0, 4])
    assert grad["net"]["w"] == 0
