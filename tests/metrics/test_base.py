import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from enn import metrics


def _mean_label(logits, labels):
    return np.mean(labels.astype(np.float32))


def _run(aggregator, batches):
    state = None
    for labels in batches:
        state = aggregator(np.zeros([1, len(labels), 2]), labels, state)
    return state


# Accuracy 1 on one row, then 0 on nine.
BATCHES = [np.ones([1, 1], np.int32), np.zeros([9, 1], np.int32)]


def test_average_counts_each_batch_once_by_default():
    state = _run(metrics.make_average_aggregator(_mean_label), BATCHES)
    assert (float(state.value), state.count, state.extra) == (0.5, 2, None)


def test_average_weighted_by_size_counts_each_row_once():
    aggregator = metrics.make_average_aggregator(_mean_label, weight_by_size=True)
    state = _run(aggregator, BATCHES)
    np.testing.assert_allclose(state.value, 0.1, rtol=1e-6)
    assert state.count == 10


@pytest.mark.strict
@pytest.mark.parametrize("weight_by_size", [False, True])
def test_average_runs_in_scan_from_the_default_state(weight_by_size):
    aggregator = metrics.make_average_aggregator(_mean_label, weight_by_size)
    labels = np.arange(12).reshape(4, 3, 1)

    def step(state, batch):
        return aggregator(np.zeros([1, 3, 2]), batch, state), None

    state, _ = jax.lax.scan(step, metrics.MetricsState(), labels)
    np.testing.assert_allclose(state.value, 5.5)
    assert state.count == (12 if weight_by_size else 4)


@pytest.mark.parametrize("start", [None, metrics.MetricsState()])
def test_sums_add_up_and_the_value_is_a_function_of_them(start):
    aggregator = metrics.make_sum_aggregator(
        lambda _, labels: {"sum": labels.sum(), "rows": len(labels)},
        lambda sums: sums["sum"] / sums["rows"],
    )
    state = aggregator(np.zeros([1, 1, 2]), BATCHES[0], start)
    assert float(state.value) == 1
    state = aggregator(np.zeros([1, 9, 2]), BATCHES[1], state)
    np.testing.assert_allclose(state.value, 0.1, rtol=1e-6)
    assert state.count == 2
    assert jax.tree.map(int, state.extra) == {"sum": 1, "rows": 10}


def test_metrics_state_starts_at_zero():
    assert metrics.MetricsState() == (0.0, 0, None)


@pytest.mark.strict
@pytest.mark.parametrize("shift", [0.0, 900.0, -900.0])
def test_average_sampled_log_likelihood_does_not_overflow(shift):
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(
        metrics.average_sampled_log_likelihood(np.asarray(x + shift, np.float32)),
        scipy.special.logsumexp(x) - math.log(12) + shift,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("x", "expected"),
    [([-np.inf, -np.inf], -np.inf), ([np.inf, 0.0], np.inf)],
)
def test_average_sampled_log_likelihood_of_infinities(x, expected):
    assert metrics.average_sampled_log_likelihood(np.array(x)) == expected


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_average_sampled_log_likelihood_of_half_precision_is_float32(dtype):
    value = metrics.average_sampled_log_likelihood(np.array([1.0, 3.0], dtype))
    assert value.dtype == np.float32
    expected = math.log((math.exp(1) + math.exp(3)) / 2)
    np.testing.assert_allclose(float(value), expected, rtol=1e-6)
