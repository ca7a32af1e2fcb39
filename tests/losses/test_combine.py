import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses
from tests.losses import cases

STATE = {"net": {"count": jnp.array(1.0)}}


def _counting_loss(factor):
    """A loss whose value is `factor` times the count in the state, which it adds to."""

    def loss(network, params, state, batch, key):
        count = state["net"]["count"]
        new_state = {"net": {"count": count + params}}
        return factor * count, (new_state, {"count": count, "key": key})

    return loss


@pytest.mark.parametrize(
    "combine",
    [losses.combine_losses_as_metric, losses.combine_single_index_losses_as_metric],
)
def test_extra_losses_are_metrics_and_see_the_incoming_state(combine):
    # They used to be evaluated at the state after the training loss.
    loss_fn = combine(
        _counting_loss(2.0), {"a": _counting_loss(3.0), "b": _counting_loss(5.0)}
    )
    loss, (state, metrics) = loss_fn(None, 1.0, STATE, None, "key")
    assert loss == 2
    assert state["net"]["count"] == 2
    assert metrics == {
        "count": 1, "key": "key",
        "a:loss": 3, "a:count": 1, "a:key": "key",
        "b:loss": 5, "b:count": 1, "b:key": "key",
    }  # fmt: skip


def test_combined_losses_thread_the_state():
    # The combined loss used to return the state it was given.
    config = losses.CombineLossConfig(_counting_loss(1.0), "data", 10.0)
    loss_fn = losses.combine_losses([config, _counting_loss(1.0)])
    loss, (state, metrics) = loss_fn(None, 2.0, STATE, None, "key")
    assert loss == 10 * 1 + 3
    assert state["net"]["count"] == 5
    assert metrics == {
        "data:loss": 1, "data:count": 1, "data:key": "key",
        "loss_1:loss": 3, "loss_1:count": 3, "loss_1:key": "key",
    }  # fmt: skip


@pytest.mark.strict
def test_no_gradient_flows_from_loss_to_loss_through_the_state():
    loss_fn = losses.combine_losses([_counting_loss(1.0), _counting_loss(1.0)])

    def loss(params):
        return loss_fn(None, params, STATE, None, jnp.array(0))[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(2.0)
    assert (value, grad) == (1 + 3, 0)


def test_default_config_is_unnamed_with_weight_one():
    config = losses.CombineLossConfig(_counting_loss(1.0))
    assert (config.name, config.weight) == ("unnamed", 1.0)


@pytest.mark.parametrize(
    "names", [["unnamed", "unnamed"], ["loss_1", None], ["a", "b", "a"], []]
)
def test_repeated_names_and_no_losses_are_rejected(names):
    # Metrics of equal name used to overwrite each other.
    loss = _counting_loss(1.0)
    terms = [(name and losses.CombineLossConfig(loss, name)) or loss for name in names]
    with pytest.raises(ValueError, match="one or more of different names"):
        losses.combine_losses(terms)


def test_inner_metrics_are_not_written_to():
    inner = {"mine": 1}

    def loss(*args):
        return 1.0, ({}, inner)

    for combined in (
        losses.combine_losses_as_metric(loss, {"a": loss}),
        losses.combine_losses([loss]),
    ):
        combined(None, {}, {}, None, None)
    assert inner == {"mine": 1}


def test_accuracy_beside_cross_entropy_costs_no_second_forward_pass():
    def apply(params, state, inputs, index):
        return inputs @ params, state

    def flops(single_loss):
        def run(params):
            return single_loss(apply, params, {}, batch, 0)

        lowered = jax.jit(run).lower(jnp.ones([1000, 3]))
        return lowered.compile().cost_analysis()["flops"]

    batch = cases.batch_of(np.zeros([6, 1])).replace(x=jnp.ones([6, 1000]))
    train_loss, extras = losses.XentLoss(3), {"acc": losses.AccuracyErrorLoss(3)}
    both = losses.combine_single_index_losses_as_metric(train_loss, extras)
    assert flops(both) < 1.1 * flops(train_loss)
