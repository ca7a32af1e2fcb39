import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics

FLOATS = st.floats(width=32, allow_nan=False, allow_subnormal=False)


def test_exact_histogram_has_a_bin_for_each_distinct_score_in_order():
    scores = np.array([2.0, -1.0, 2.0, 0.0, -0.0])
    values = np.array([True, True, False, True, True])
    histogram = metrics.exact_histogram(scores, values)
    np.testing.assert_array_equal(histogram.counts, [1, 2, 2, 0, 0])
    np.testing.assert_array_equal(histogram.totals, [1, 2, 1, 0, 0])
    assert histogram.totals.dtype == np.int32


def test_float_values_are_summed_as_floats():
    scores, values = np.array([1.0, 1.0]), np.array([0.25, 0.5])
    for histogram in [
        metrics.exact_histogram(scores, values),
        metrics.binned_histogram(scores, values),
    ]:
        np.testing.assert_array_equal(histogram.totals[histogram.counts > 0], [0.75])


def _bin_of(score, num_bits):
    histogram = metrics.binned_histogram(
        np.full([1], score, np.float32), np.ones([1], bool), num_bits
    )
    return int(histogram.counts.argmax())


@settings(deadline=None, max_examples=30)
@given(low=FLOATS, high=FLOATS)
def test_bins_keep_the_order_of_all_floats(low, high):
    low, high = sorted([low, high])
    assert _bin_of(low, 16) <= _bin_of(high, 16)


@settings(deadline=None, max_examples=30)
@given(
    exponent=st.floats(-80, 80),
    sign=st.sampled_from([-1, 1]),
    step=st.floats(-0.02, 0.02),
)
def test_scores_share_a_bin_only_within_the_stated_factor(exponent, sign, step):
    score = 2.0**exponent
    near = score * (1 + step)
    for num_bits in (12, 16):
        if _bin_of(sign * score, num_bits) == _bin_of(sign * near, num_bits):
            ratio = max(score, near) / min(score, near)
            assert ratio < (1 + 2.0 ** (9 - num_bits)) * (1 + 1e-6)
    far = score * (1 + 2.0**-7) * (1 + 1e-6)
    assert _bin_of(sign * score, 16) != _bin_of(sign * far, 16)


@pytest.mark.strict
def test_zeros_of_both_signs_and_infinities_have_bins():
    bins = [_bin_of(score, 12) for score in (-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf)]
    assert bins == sorted(bins)
    assert bins[2] == bins[3]
    assert len(set(bins)) == 5


@pytest.mark.parametrize("make", [metrics.exact_histogram, metrics.binned_histogram])
def test_wrong_rows_are_errors(make):
    with pytest.raises(ValueError, match=r"scores must have shape \[n\]"):
        make(np.zeros([2, 1]), np.zeros([2]))
    with pytest.raises(ValueError, match=r"values must have shape"):
        make(np.zeros([2]), np.zeros([2, 1]))
    with pytest.raises(ValueError, match="scores must not be NaN"):
        make(np.array([0.0, np.nan]), np.zeros([2]))


@pytest.mark.parametrize("num_bits", [8, 25, 12.5])
def test_num_bits_out_of_range_is_an_error(num_bits):
    with pytest.raises(ValueError, match="num_bits must be one of 9, 10"):
        metrics.binned_histogram(np.zeros([2]), np.zeros([2]), num_bits)
    with pytest.raises(ValueError, match="num_bits must be one of 9, 10"):
        metrics.make_auroc_aggregator(lambda scores: scores, num_bits)


@pytest.mark.strict
def test_histograms_work_under_jit_and_vmap():
    scores = np.array([[0.0, 1.0, 1.0], [3.0, 2.0, -1.0]])
    values = np.array([[1, 0, 1], [0, 0, 1]])
    for make in [metrics.exact_histogram, metrics.binned_histogram]:
        batched = jax.jit(jax.vmap(make))(scores, values)
        for row in range(2):
            alone = make(scores[row], values[row])
            np.testing.assert_array_equal(batched.counts[row], alone.counts)
            np.testing.assert_array_equal(batched.totals[row], alone.totals)
