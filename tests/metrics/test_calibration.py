import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics
from tests.support.batches import (
    LABELS,
    LOGITS,
    SMALL_LABELS,
    SMALL_LOGITS,
    logits_of,
    softmax,
)


def _slow_ece(logits, labels, num_bins):
    probs = softmax(logits).mean(axis=0)
    confidence, correct = probs.max(-1), probs.argmax(-1) == np.asarray(labels)[:, 0]
    total = 0.0
    for i in range(num_bins):
        rows = (confidence >= i / num_bins) & (confidence < (i + 1) / num_bins)
        if rows.any():
            gap = abs(correct[rows].mean() - confidence[rows].mean())
            total += rows.mean() * gap
    return total


def _both(num_bins, logits, labels):
    return [
        metrics.SingleBatchECE(num_bins)(logits, labels),
        metrics.ExpectedCalibrationError(num_bins)(logits, labels).value,
    ]


@pytest.mark.strict
def test_documented_value():
    for value in _both(10, SMALL_LOGITS, SMALL_LABELS):
        np.testing.assert_allclose(value, 0.27088612, rtol=1e-5)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_against_the_definition(num_bins):
    for value in _both(num_bins, LOGITS, LABELS):
        expected = _slow_ece(LOGITS, LABELS, num_bins)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_bins", "expected"),
    [(10, abs(0.5 - (0.5 + 0.55) / 2)), (15, 0.5 * 0.5 + 0.5 * 0.55)],
    ids=["one bin", "two bins"],
)
def test_confidence_on_a_lower_edge_belongs_to_the_bin_above(num_bins, expected):
    logits = logits_of([[0.5, 0.5], [0.45, 0.55]])
    for value in _both(num_bins, logits, np.array([[0], [0]])):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_certain_rows_count_in_the_last_bin():
    # Rows of confidence 1 were dropped; here the wrong one would go unnoticed.
    logits = np.array([[[0.0, 40.0], [np.log(3.0), 0.0]]])
    for value in _both(10, logits, np.array([[0], [0]])):
        np.testing.assert_allclose(value, 0.5 * 1 + 0.5 * 0.25, rtol=1e-6)


@pytest.mark.strict
def test_only_certain_and_wrong_rows_have_error_one():
    # 0/0 before: no row was in any bin.
    logits = np.tile(np.array([0.0, 40.0]), [2, 3, 1])
    for value in _both(10, logits, np.zeros([3, 1], np.int32)):
        assert float(value) == 1


def test_starts_from_the_default_state():
    ece = metrics.ExpectedCalibrationError(10)
    started = ece(SMALL_LOGITS, SMALL_LABELS, metrics.MetricsState())
    fresh = ece(SMALL_LOGITS, SMALL_LABELS)
    assert float(started.value) == float(fresh.value)
    assert started.count == fresh.count == 1


def test_state_holds_sums_of_each_bin():
    ece = metrics.ExpectedCalibrationError(4)
    logits = logits_of([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    state = ece(logits, np.array([[0], [0], [0]]))
    state = ece(logits, np.array([[1], [1], [1]]), state)
    assert state.count == 2
    sums = {name: list(value) for name, value in state.extra.items()}
    np.testing.assert_allclose(sums.pop("correct_sums"), [0, 0, 1, 2])
    np.testing.assert_allclose(sums.pop("prob_sums"), [0, 0, 1.2, 3.4], rtol=1e-6)
    np.testing.assert_allclose(sums.pop("counts"), [0, 0, 2, 4])
    assert not sums


def test_counts_are_exact_beyond_what_float32_counts():
    # float32 stays at 2^24 = 16,777,216 when one is added.
    ece = metrics.ExpectedCalibrationError(2)
    batch = logits_of([[0.9, 0.1]]), np.array([[0]])
    state = ece(*batch)
    many = {name: values * 2**24 for name, values in state.extra.items()}
    state = ece(*batch, state._replace(extra=many))
    np.testing.assert_array_equal(state.extra["counts"], [0, 2**24 + 1])
    np.testing.assert_array_equal(state.extra["correct_sums"], [0, 2**24 + 1])
    np.testing.assert_allclose(state.value, 0.1, rtol=1e-6)


def test_equal_logits_of_many_classes_lose_no_row():
    logits = np.full([3, 40, 1000], 7, np.float32)
    state = metrics.ExpectedCalibrationError(1000)(logits, np.zeros([40, 1], int))
    assert int(state.extra["counts"].sum()) == 40
    np.testing.assert_allclose(state.value, 1 - 1e-3, rtol=1e-6)


@pytest.mark.strict
def test_reliability_diagram_of_two_batches():
    ece = metrics.ExpectedCalibrationError(4)
    logits = logits_of([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    state = ece(logits, np.array([[0], [0], [0]]))
    state = ece(logits, np.array([[1], [1], [1]]), state)
    diagram = metrics.reliability_diagram(state.extra)
    np.testing.assert_allclose(diagram.confidence, [0, 0, 0.6, 0.85], rtol=1e-6)
    np.testing.assert_allclose(diagram.accuracy, [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(diagram.counts, [0, 0, 2, 4])
    weights = diagram.counts / diagram.counts.sum()
    np.testing.assert_allclose(
        state.value,
        np.sum(weights * np.abs(diagram.accuracy - diagram.confidence)),
        rtol=1e-6,
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 100.0))
def test_error_is_between_zero_and_one_and_bins_only_refine(seed, scale):
    rng = np.random.default_rng(seed)
    logits = np.asarray(scale * rng.normal(size=(3, 8, 3)), np.float32)
    labels = np.asarray(rng.integers(3, size=(8, 1)))
    coarse, fine = (float(_both(n, logits, labels)[1]) for n in (1, 8))
    assert -1e-6 <= coarse <= fine + 1e-6 <= 1 + 2e-6


@pytest.mark.parametrize("wrong", [0, -3, 1.5])
def test_num_bins_must_be_a_positive_integer(wrong):
    for ctor in [metrics.ExpectedCalibrationError, metrics.SingleBatchECE]:
        with pytest.raises(ValueError, match="num_bins must be an integer >= 1"):
            ctor(wrong)


def test_num_bins_is_an_attribute():
    assert metrics.ExpectedCalibrationError(7).num_bins == 7
    assert metrics.SingleBatchECE(7) == metrics.SingleBatchECE(num_bins=7)
