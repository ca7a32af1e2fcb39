import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics
from tests.support.batches import LOGITS, logits_of, softmax

SCORES = [
    metrics.variation_ratio,
    metrics.predictive_entropy,
    metrics.mutual_information,
]


@pytest.mark.strict
def test_against_scipy():
    probs = softmax(LOGITS)
    total = scipy.stats.entropy(probs.mean(axis=0), axis=-1)
    aleatoric = scipy.stats.entropy(probs, axis=-1).mean(axis=0)
    variation = 1 - probs.mean(axis=0).max(axis=-1)
    expected = [variation, total, total - aleatoric]
    for score, value in zip(SCORES, expected, strict=True):
        np.testing.assert_allclose(score(LOGITS), value, rtol=1e-4, atol=1e-6)


@pytest.mark.strict
def test_members_that_disagree_with_certainty_are_maximally_informative():
    # Probabilities of exactly 0 gave NaN.
    logits = np.array([[[100.0, -100.0]], [[-100.0, 100.0]]])
    np.testing.assert_allclose(metrics.mutual_information(logits), [np.log(2)])
    np.testing.assert_allclose(metrics.predictive_entropy(logits), [np.log(2)])


@pytest.mark.strict
def test_certain_rows_have_no_uncertainty():
    logits = np.tile(np.array([100.0, -100.0, -np.inf]), [2, 4, 1])
    for score in SCORES:
        np.testing.assert_allclose(score(logits), np.zeros(4), atol=1e-30)


def test_one_member_carries_no_information():
    logits = logits_of([[0.3, 0.7], [0.5, 0.5]])
    np.testing.assert_allclose(metrics.mutual_information(logits), [0, 0], atol=1e-7)
    np.testing.assert_allclose(metrics.variation_ratio(logits), [0.3, 0.5], rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 200.0))
def test_bounds(seed, scale):
    logits = scale * np.random.default_rng(seed).normal(size=(5, 8, 3))
    logits = np.asarray(logits, np.float32)
    entropy = metrics.predictive_entropy(logits)
    information = metrics.mutual_information(logits)
    assert np.all((entropy >= 0) & (entropy <= np.log(3) + 1e-6))
    assert np.all((information >= -1e-6) & (information <= entropy + 1e-6))


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_one_a_row_and_differentiable(score):
    value, grad = jax.value_and_grad(lambda x: score(x).sum())(LOGITS)
    assert score(LOGITS).shape == (24,)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
