import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses
from tests import golden
from tests.losses import cases

PARAMS = {"m": {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}}


def _is_w(module_name, name, value):
    return name == "w"


def _exceeds_one(module_name, name, value):
    return value[0] > 1


def _in_other_module(module_name, name, value):
    return module_name == "other"


def _unit_loss(enn, params, state, batch, key):
    return jnp.array(1.0), ({"s": {"x": key}}, {"mine": batch})


def _decayed(scale, predicate=None):
    loss_fn = losses.add_l2_weight_decay(_unit_loss, scale, predicate)
    return loss_fn(None, PARAMS, {}, "batch", "key")


@pytest.mark.parametrize(
    ("predicate", "wanted"),
    [
        (None, 14),
        (_is_w, 5),
        (_exceeds_one, 9),
        (_in_other_module, 0),
    ],
)
def test_sum_of_squares_of_picked_weights(predicate, wanted):
    assert losses.l2_weights_with_predicate(PARAMS, predicate) == wanted


@pytest.mark.parametrize(
    ("scale", "predicate", "decay"),
    [
        (0.5, None, 7),
        (lambda params: jax.tree.map(lambda p: 2 * p, params), None, 56),
        (0.5, _is_w, 2.5),
        (0, None, 0),
        # The predicate sees the weights scaled by √0.25: [0.5, 1.0] and [1.5].
        (0.25, _exceeds_one, 2.25),
        (3.0, _in_other_module, 0),
    ],
)
def test_decay_is_added_and_reported(scale, predicate, decay):
    loss, (state, metrics) = _decayed(scale, predicate)
    np.testing.assert_allclose(loss, 1 + decay, rtol=1e-6)
    np.testing.assert_allclose(metrics["decay"], decay, rtol=1e-6)
    assert metrics["raw_loss"] == 1
    assert metrics["mine"] == "batch"
    assert state == {"s": {"x": "key"}}
    assert metrics["decay"].dtype == loss.dtype == jnp.float32


def test_metrics_of_the_inner_loss_are_not_written_to():
    inner = {"mine": 1}

    def loss(*args):
        return 1.0, ({}, inner)

    losses.add_l2_weight_decay(loss, 0.5)(None, PARAMS, {}, None, None)
    assert inner == {"mine": 1}


@pytest.mark.parametrize("scale", [-0.1, float("nan"), jnp.array(-1.0)])
def test_negative_scale_is_rejected(scale):
    # It gave a loss of NaN.
    with pytest.raises(ValueError, match="scale must be a number >= 0 or a function"):
        losses.add_l2_weight_decay(_unit_loss, scale)


def test_golden_decayed_xent_with_accuracy():
    single = losses.combine_single_index_losses_as_metric(
        losses.XentLoss(3), {"acc": losses.AccuracyErrorLoss(3)}
    )
    averaged = losses.average_single_index_loss(single, 4)
    loss_fn = losses.add_l2_weight_decay(averaged, 0.3, _is_w)
    batch = cases.golden_batch("classification")
    report = cases.evaluate(loss_fn, cases.golden_ensemble(3), batch)
    golden.assert_matches("loss_xent_with_metrics", report)
