"""Every loss without state equals the one with state on the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses, networks
from tests import golden
from tests.losses import cases

BATCH = cases.batch_of([[1.0], [2.0], [4.0]])
PARAMS = {"net": {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}}


def _apply(params, inputs, index):
    return params["net"]["w"][index] * jnp.ones([len(inputs), 1])


def _init(rng_key, inputs, index):
    return PARAMS


ENN = networks.EnnNoState(_apply, _init, networks.EnsembleIndexer(4))


def _single(apply, params, batch, index):
    gap = apply(params, batch.x, index) - batch.y
    return jnp.mean(gap**2), {"gap": jnp.mean(gap)}


def _single_with_state(apply, params, state, batch, index):
    gap = apply(params, state, batch.x, index)[0] - batch.y
    return jnp.mean(gap**2), (state, {"gap": jnp.mean(gap)})


def _double(single_loss):
    """A second loss, to combine with the first."""

    def doubled(*args):
        loss, metrics = single_loss(*args)
        return 2 * loss, metrics

    return doubled


def _add_index(batch, index):
    return batch.replace(y=batch.y + index)


LOSS, LOSS_WITH_STATE = (
    losses.average_single_index_loss_no_state(_single, 5),
    losses.average_single_index_loss(_single_with_state, 5),
)


@pytest.mark.parametrize(
    ("no_state", "with_state"),
    [
        (LOSS, LOSS_WITH_STATE),
        (
            losses.add_l2_weight_decay_no_state(LOSS, 0.3),
            losses.add_l2_weight_decay(LOSS_WITH_STATE, 0.3),
        ),
        (
            losses.combine_losses_no_state_as_metric(LOSS, {"a": _double(LOSS)}),
            losses.combine_losses_as_metric(
                LOSS_WITH_STATE, {"a": _double(LOSS_WITH_STATE)}
            ),
        ),
        (
            losses.combine_losses_no_state(
                [losses.CombineLossConfigNoState(LOSS, "a", 3.0), _double(LOSS)]
            ),
            losses.combine_losses(
                [
                    losses.CombineLossConfig(LOSS_WITH_STATE, "a", 3.0),
                    _double(LOSS_WITH_STATE),
                ]
            ),
        ),
    ],
    ids=["average", "decay", "as_metric", "combine"],
)
def test_loss_equals_its_twin(no_state, with_state):
    key = golden.keys(5)
    got = jax.jit(lambda params: no_state(ENN, params, BATCH, key))(PARAMS)
    enn = networks.wrap_enn_no_state_as_enn(ENN)
    run = jax.jit(lambda params: with_state(enn, params, {}, BATCH, key))
    loss, (state, metrics) = run(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, (loss, metrics)
    )
    assert state == {}
    assert loss > 0


@pytest.mark.parametrize(
    ("no_state", "with_state"),
    [
        (
            losses.add_data_noise_no_state(_single, _add_index),
            losses.add_data_noise(_single_with_state, _add_index),
        ),
        (
            losses.combine_single_index_losses_no_state_as_metric(
                _single, {"a": _double(_single)}
            ),
            losses.combine_single_index_losses_as_metric(
                _single_with_state, {"a": _double(_single_with_state)}
            ),
        ),
        (
            losses.wrap_single_loss_as_single_loss_no_state(_single_with_state),
            losses.wrap_single_loss_no_state_as_single_loss(_single),
        ),
    ],
    ids=["noise", "as_metric", "wrap"],
)
def test_single_loss_equals_its_twin(no_state, with_state):
    got = no_state(_apply, PARAMS, BATCH, jnp.array(2))
    apply = networks.wrap_apply_no_state_as_apply(_apply)
    loss, (state, metrics) = with_state(apply, PARAMS, {}, BATCH, jnp.array(2))
    jax.tree.map(np.testing.assert_array_equal, got, (loss, metrics))
    assert state == {}
    assert loss > 0


def _state_apply(params, state, inputs, index):
    return state["s"]["x"] * jnp.ones([len(inputs), 1]), {"s": {"x": -1.0}}


@pytest.mark.parametrize("constant", [3.0, None])
def test_constant_state_is_used_and_returned(constant):
    # The wrapper of full losses ran the network with an empty state all the same.
    def single(apply, params, batch, index):
        return jnp.sum(apply(params, batch.x, index)), {}

    def full(enn, params, batch, key):
        return jnp.sum(enn.apply(params, batch.x, enn.indexer(key))), {}

    state = None if constant is None else {"s": {"x": constant}}
    enn = networks.EnnArray(_state_apply, None, networks.PrngIndexer())
    wrapped = losses.wrap_loss_no_state_as_loss(full, state)
    wrapped_single = losses.wrap_single_loss_no_state_as_single_loss(single, state)
    for run in (
        lambda: wrapped(enn, {}, {"s": {"x": 100.0}}, BATCH, golden.keys(0)),
        lambda: wrapped_single(_state_apply, {}, {"s": {"x": 100.0}}, BATCH, 0),
    ):
        if constant is None:
            with pytest.raises(KeyError, match="s"):
                run()
        else:
            loss, (new_state, _) = run()
            assert loss == 3 * constant
            assert new_state == state


def test_loss_with_state_gets_the_constant_state():
    def single(apply, params, state, batch, index):
        out, new_state = apply(params, state, batch.x, index)
        return jnp.sum(out) * state["s"]["x"], (new_state, {"n": len(new_state)})

    wrapped = losses.wrap_single_loss_as_single_loss_no_state(
        single, {"s": {"x": 10.0}}
    )
    loss, metrics = wrapped(_apply, PARAMS, BATCH, 1)
    assert loss == 3 * 2 * 10
    assert metrics == {"n": 0}


def test_no_state_config_defaults():
    config = losses.CombineLossConfigNoState(LOSS)
    assert (config.name, config.weight) == ("unnamed", 1.0)
