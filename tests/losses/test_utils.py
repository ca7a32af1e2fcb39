"""Combined, noisy and decayed losses, with network state and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import data_noise, losses, networks
from tests.losses import cases
from tests.support import golden

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


def test_loss_sees_the_batch_of_the_index():
    def noise(batch, index):
        return batch.replace(y=batch.y + index)

    def single_loss(*args):
        return args

    noisy = losses.add_data_noise(single_loss, noise)
    batch = cases.batch_of([[1.0], [2.0]])
    *others, noisy_batch, index = noisy("apply", "params", "state", batch, 10)
    assert (others, index) == (["apply", "params", "state"], 10)
    np.testing.assert_array_equal(noisy_batch.y, [[11.0], [12.0]])
    np.testing.assert_array_equal(batch.y, [[1.0], [2.0]])


def test_golden_bootstrapped_xent():
    enn = cases.golden_ensemble(3)
    noise = data_noise.BootstrapNoise(enn, "bernoulli", 1)
    single = losses.add_data_noise(losses.XentLoss(3), noise)
    loss_fn = losses.average_single_index_loss(single, 6)
    batch = golden.batch("classification")
    golden.assert_matches("bootstrapped_loss", cases.evaluate(loss_fn, enn, batch))


DECAYED = {"m": {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}}


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
    return loss_fn(None, DECAYED, {}, "batch", "key")


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
    assert losses.l2_weights_with_predicate(DECAYED, predicate) == wanted


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

    losses.add_l2_weight_decay(loss, 0.5)(None, DECAYED, {}, None, None)
    assert inner == {"mine": 1}


@pytest.mark.parametrize("scale", [-0.1, float("nan"), jnp.array(-1.0)])
def test_negative_scale_is_rejected(scale):
    # It gave a loss of NaN.
    with pytest.raises(ValueError, match="scale must be a number >= 0 or a function"):
        losses.add_l2_weight_decay(_unit_loss, scale)


@pytest.mark.slow
def test_golden_decayed_xent_with_accuracy():
    single = losses.combine_single_index_losses_as_metric(
        losses.XentLoss(3), {"acc": losses.AccuracyErrorLoss(3)}
    )
    averaged = losses.average_single_index_loss(single, 4)
    loss_fn = losses.add_l2_weight_decay(averaged, 0.3, _is_w)
    batch = golden.batch("classification")
    report = cases.evaluate(loss_fn, cases.golden_ensemble(3), batch)
    golden.assert_matches("loss_xent_with_metrics", report)


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


def test_no_state_config_defaults():
    config = losses.CombineLossConfigNoState(LOSS)
    assert (config.name, config.weight) == ("unnamed", 1.0)
