import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics
from tests.support.batches import LABELS, LOGITS, logits_of


def _first(uncertainty):
    """Uncertainties stand in the place of logits."""
    return uncertainty


def _given_losses(logits, losses):
    return losses[:, 0]


def _slow_aurc(uncertainty, losses):
    """Mean, over rows, of the mean loss of all rows at most as uncertain."""
    risks = [losses[uncertainty <= threshold].mean() for threshold in uncertainty]
    return np.mean(risks)


def _rows(seed, num_levels=None):
    rng = np.random.default_rng(seed)
    uncertainty = rng.normal(size=40)
    losses = (rng.normal(size=40) < uncertainty - rng.normal()).astype(int)
    if num_levels:
        uncertainty = np.floor(num_levels * uncertainty / 4)
    return uncertainty.astype(np.float32), losses


@pytest.mark.strict
@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0, 0, 1, 1], (0 + 0 + 1 / 3 + 2 / 4) / 4),
        ([1, 1, 0, 0], (1 + 1 + 2 / 3 + 2 / 4) / 4),
        ([0, 0, 0, 0], 0.0),
        ([1, 1, 1, 1], 1.0),
    ],
)
def test_area_by_hand(losses, expected):
    uncertainty, losses = np.arange(4.0), np.array(losses)
    value = metrics.calculate_aurc(uncertainty, losses)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    num_levels=st.sampled_from([None, 1, 3, 10]),
    scale=st.sampled_from([1, 0.7]),
)
def test_area_against_the_definition(seed, num_levels, scale):
    uncertainty, losses = _rows(seed, num_levels)
    np.testing.assert_allclose(
        metrics.calculate_aurc(uncertainty, scale * losses),
        _slow_aurc(uncertainty, scale * losses),
        rtol=1e-5,
    )


@pytest.mark.strict
def test_curve_has_a_point_for_each_distinct_uncertainty():
    uncertainty = np.array([0.3, 0.1, 0.2, 0.2])
    losses = np.array([1, 0, 1, 0])
    aggregator = metrics.make_aurc_aggregator(_first, _given_losses)
    for histogram in [
        metrics.exact_histogram(uncertainty, losses),
        aggregator(uncertainty, losses[:, None]).extra,
    ]:
        curve = metrics.risk_coverage_curve(histogram)
        np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1])
        np.testing.assert_allclose(curve.risk, [0, 1 / 3, 1 / 2], rtol=1e-6)


@pytest.mark.slow
def test_full_coverage_has_the_risk_of_all_rows():
    state = metrics.make_aurc_aggregator()(LOGITS, LABELS)
    curve = metrics.risk_coverage_curve(state.extra)
    accuracy = metrics.make_accuracy_calculator()(LOGITS, LABELS)
    np.testing.assert_allclose(curve.risk[-1], 1 - accuracy, rtol=1e-6)
    assert curve.coverage[-1] == 1


def test_defaults_rank_by_the_most_probable_class_and_count_errors():
    logits = logits_of([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([[0], [0], [1]])
    np.testing.assert_array_equal(metrics.zero_one_loss(logits, labels), [0, 1, 1])
    state = metrics.make_aurc_aggregator()(logits, labels)
    np.testing.assert_allclose(state.value, (0 + 1 / 2 + 2 / 3) / 3, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), num_bits=st.sampled_from([9, 11, 16]))
def test_binned_area_differs_by_at_most_the_stated_bound(seed, num_bits):
    uncertainty, losses = _rows(seed)
    aggregator = metrics.make_aurc_aggregator(_first, _given_losses, num_bits)
    state = aggregator(uncertainty, losses[:, None])
    filled = np.asarray(state.extra.counts) > 0
    n, e = (np.asarray(x)[filled] for x in state.extra)
    k, errors = np.cumsum(n) - n, np.cumsum(e) - e
    lowest = errors / np.maximum(k + n - e, 1)
    highest = (errors + e) / (k + np.maximum(e, 1))
    bound = np.sum(n / n.sum() * (highest - lowest))
    exact = metrics.calculate_aurc(uncertainty, losses)
    assert abs(state.value - exact) <= bound + 1e-6


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(40)))
def test_no_order_is_better_than_errors_last(seed, order):
    _, losses = _rows(seed)
    best = metrics.calculate_aurc(losses + np.arange(40) / 100, losses)
    worst = metrics.calculate_aurc(np.arange(40) / 100 - losses, losses)
    value = metrics.calculate_aurc(np.array(order, np.float32), losses)
    assert best - 1e-6 <= value <= worst + 1e-6


def test_area_works_under_jit():
    uncertainty, losses = _rows(2, num_levels=5)
    np.testing.assert_allclose(
        jax.jit(metrics.calculate_aurc)(uncertainty, losses),
        metrics.calculate_aurc(uncertainty, losses),
        rtol=1e-6,
    )
