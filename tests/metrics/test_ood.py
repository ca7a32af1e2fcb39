import jax
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics

BOTH = [
    (metrics.calculate_auroc, sklearn.metrics.roc_auc_score),
    (metrics.calculate_aupr, sklearn.metrics.average_precision_score),
]


def _first(scores):
    """Scores stand in the place of logits."""
    return scores


def _rows(seed, num_levels=None, num_rows=40):
    """Random scores, of few levels where asked, and labels of both kinds."""
    rng = np.random.default_rng(seed)
    is_ood = np.append([0, 1], rng.random(num_rows - 2) < rng.random()).astype(int)
    scores = rng.normal(size=num_rows) + is_ood
    if num_levels:
        scores = np.floor(num_levels * scores / 4)
    return scores.astype(np.float32), is_ood


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), num_levels=st.sampled_from([None, 1, 3, 10]))
def test_exact_values_are_those_of_scikit_learn(seed, num_levels):
    scores, is_ood = _rows(seed, num_levels)
    for metric, reference in BOTH:
        expected = reference(is_ood, scores)
        np.testing.assert_allclose(metric(scores, is_ood), expected, rtol=1e-5)


@pytest.mark.strict
@pytest.mark.parametrize(
    ("scores", "auroc", "aupr"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1.0, 1.0),
        ([3.0, 2.0, 1.0, 0.0], 0.0, (1 / 3 + 2 / 4) / 2),
        ([5.0, 5.0, 5.0, 5.0], 0.5, 0.5),
        ([0.0, 2.0, 1.0, 3.0], 0.75, (1 + 2 / 3) / 2),
    ],
)
def test_values_by_hand(scores, auroc, aupr):
    scores, is_ood = np.array(scores), np.array([False, False, True, True])
    np.testing.assert_allclose(metrics.calculate_auroc(scores, is_ood), auroc)
    np.testing.assert_allclose(metrics.calculate_aupr(scores, is_ood), aupr, rtol=1e-6)
    for make, expected in [
        (metrics.make_auroc_aggregator, auroc),
        (metrics.make_aupr_aggregator, aupr),
    ]:
        state = make(_first)(scores, is_ood[:, None])
        np.testing.assert_allclose(state.value, expected, rtol=1e-6)


@pytest.mark.strict
def test_rows_of_one_kind_only():
    scores = np.array([0.0, 1.0, 2.0])
    for label, aupr in [(0, 0.0), (1, 1.0)]:
        is_ood = np.full([3], label)
        assert metrics.calculate_auroc(scores, is_ood) == 0.5
        assert metrics.calculate_aupr(scores, is_ood) == aupr


def _bins(scores, is_ood, num_bits):
    """Rows out of and in distribution in each filled bin, lowest score first."""
    counts, positives = metrics.binned_histogram(scores, is_ood, num_bits)
    filled = np.asarray(counts) > 0
    positives, counts = np.asarray(positives)[filled], np.asarray(counts)[filled]
    return positives, counts - positives


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), num_bits=st.sampled_from([9, 11, 16]))
def test_binned_values_differ_by_at_most_the_stated_bounds(seed, num_bits):
    scores, is_ood = _rows(seed)
    p, n = _bins(scores, is_ood, num_bits)
    auroc_bound = 0.5 * np.sum(p * n) / (p.sum() * n.sum())
    t, f = (np.append(np.cumsum(x[::-1])[::-1], 0)[1:] for x in (p, n))
    highest = (t + p) / np.maximum(t + p + f, 1)
    aupr_bound = np.sum(p / p.sum() * (highest - (t + 1) / (t + 1 + f + n)))
    for make, exact, bound in [
        (metrics.make_auroc_aggregator, metrics.calculate_auroc, auroc_bound),
        (metrics.make_aupr_aggregator, metrics.calculate_aupr, aupr_bound),
    ]:
        binned = make(_first, num_bits)(scores, is_ood[:, None]).value
        assert abs(binned - exact(scores, is_ood)) <= bound + 1e-6


def test_binned_values_are_exact_where_no_bin_is_shared():
    scores, is_ood = _rows(0, num_levels=10)
    for make, (_, reference) in zip(
        [metrics.make_auroc_aggregator, metrics.make_aupr_aggregator], BOTH, strict=True
    ):
        state = make(_first)(scores, is_ood[:, None])
        np.testing.assert_allclose(state.value, reference(is_ood, scores), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_auroc_sees_only_the_order(seed):
    scores, is_ood = _rows(seed, num_levels=10)
    value = metrics.calculate_auroc(scores, is_ood)
    rising = metrics.calculate_auroc(np.exp(scores), is_ood)
    np.testing.assert_allclose(rising, value, rtol=1e-6)
    falling = metrics.calculate_auroc(-scores, is_ood)
    np.testing.assert_allclose(falling, 1 - value, atol=1e-6)


def test_aggregator_scores_logits():
    certain = np.array([[[50.0, 0.0]], [[50.0, 0.0]]])
    torn = np.array([[[50.0, 0.0]], [[0.0, 50.0]]])
    aggregator = metrics.make_auroc_aggregator(metrics.mutual_information)
    state = aggregator(certain, np.array([[0]]))
    assert state.value == 0.5
    state = aggregator(torn, np.array([[1]]), state)
    assert (state.value, state.count) == (1, 2)


def test_scikit_learn_holds_for_many_rows():
    # Products of counts exceed int32.
    rng = np.random.default_rng(0)
    is_ood = rng.integers(2, size=200_000)
    scores = (rng.normal(size=is_ood.size) + is_ood).astype(np.float32)
    for make, (_, reference) in zip(
        [metrics.make_auroc_aggregator, metrics.make_aupr_aggregator], BOTH, strict=True
    ):
        state = make(_first)(scores, is_ood[:, None])
        np.testing.assert_allclose(state.value, reference(is_ood, scores), atol=1e-3)


@pytest.mark.parametrize("metric", [metric for metric, _ in BOTH])
def test_wrong_labels_are_errors(metric):
    with pytest.raises(ValueError, match=r"integers in \[0, 2\), got 2"):
        metric(np.zeros(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="values must have shape"):
        metric(np.zeros(3), np.array([[0], [1], [1]]))


@pytest.mark.parametrize(
    "make", [metrics.make_auroc_aggregator, metrics.make_aupr_aggregator]
)
def test_aggregator_takes_labels_with_or_without_a_trailing_axis(make):
    scores, is_ood = np.arange(3.0), np.array([0, 1, 1])
    values = [make(_first)(scores, y).value for y in (is_ood, is_ood[:, None])]
    assert float(values[0]) == float(values[1]) == 1
    with pytest.raises(ValueError, match=r"is_ood must have shape \[batch, 1\]"):
        make(_first)(scores, is_ood[None])


@pytest.mark.strict
def test_exact_values_work_under_jit():
    scores, is_ood = _rows(1, num_levels=5)
    for metric, _ in BOTH:
        np.testing.assert_allclose(
            jax.jit(metric)(scores, is_ood), metric(scores, is_ood), rtol=1e-6
        )
