"""Conformal quantiles, scores and sets against written-out numbers, and coverage."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn import base

from enn import calibration
from tests.calibration.cases import LABELS, LOGITS

UNIFORMS = np.array([0.1, 0.5, 0.9, 0.3, 0.7, 0.2, 0.6, 0.4, 0.8, 0.05])
PROBS = scipy.special.softmax(LOGITS, -1)
TEST_LOGITS = np.array([[[1.5, 1, -1], [0.1, 0, 0.2], [4, 0, 0]]])
LOWER = np.array([0, 0.5, 1, -1, 0.2, 0.3, 0, 0.1, 0.4])
UPPER = np.array([1, 1.2, 2, 0.5, 0.9, 1.5, 0.7, 1.1, 1.3])
TARGETS = np.array([0.5, 1.4, 0.7, 0.6, 0.85, 0.9, -0.3, 1.15, 1])


@pytest.mark.strict
def test_quantiles() -> None:
    aps, thr = calibration.aps_scores, calibration.thr_scores
    # The plain quantile 0.8 of the first is .6074265.
    for scores, expected in (
        (thr(PROBS), 0.6993904),
        (aps(PROBS), 0.9464991),
        (calibration.raps_scores(PROBS), 1.0427521),
        (aps(PROBS, UNIFORMS), 0.7895733),
    ):
        at_label = np.take_along_axis(np.asarray(scores), LABELS, 1)[:, 0]
        quantile = calibration.conformal_quantile(at_label, 0.2)
        np.testing.assert_allclose(quantile, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "alpha", "k"),
    [
        (24, 0.44, 14),
        (9, 0.2, 8),
        (10, 0.2, 9),
        (4, 0.2, 4),
        (99, 0.01, 99),
        (5, 0.99, 1),
    ],
)
def test_which_score_is_the_quantile(n: int, alpha: float, k: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert calibration.conformal_quantile(scores, alpha) == k


def test_too_few_rows_give_all_classes() -> None:
    assert calibration.conformal_quantile(np.ones(3), 0.2) == math.inf
    few = calibration.make_conformal_classifier(LOGITS[None, :3], LABELS[:3], 0.2)
    assert few.quantile == math.inf
    assert few(TEST_LOGITS).all()


@pytest.mark.parametrize(
    ("method", "allow_empty", "expected"),
    [
        ("thr", False, ["110", "101", "100"]),
        ("aps", False, ["100", "101", "100"]),
        ("raps", False, ["100", "101", "100"]),
        ("aps", True, ["100", "101", "000"]),
    ],
)
def test_sets(method: Any, allow_empty: bool, expected: list[str]) -> None:
    classifier = calibration.make_conformal_classifier(
        LOGITS[None], LABELS, 0.2, method, allow_empty=allow_empty
    )
    sets = classifier(TEST_LOGITS)
    assert sets.dtype == bool
    np.testing.assert_array_equal(sets, [[c == "1" for c in row] for row in expected])


def test_scores_of_ties_are_in_the_order_of_classes() -> None:
    probs = np.array([[0.25, 0.5, 0.25]])
    scores = calibration.aps_scores(probs)
    np.testing.assert_allclose(scores, [[0.75, 0.5, 1]])
    scores = calibration.raps_scores(probs, penalty=0.2, k_reg=2)
    np.testing.assert_allclose(scores, [[0.75, 0.5, 1.2]], rtol=1e-6)
    # One number a row: a set stays a beginning of the ranking.
    scores = calibration.aps_scores(probs, np.array([0.5]))
    np.testing.assert_allclose(scores, [[0.625, 0.25, 0.875]])


def test_probabilities_are_averaged_and_not_logits() -> None:
    sure = np.array([[[10.0, 0]], [[0, 9.0]]])
    probs = scipy.special.softmax(sure, -1).mean(0)
    classifier = calibration.ConformalClassifier(0.6, "thr", True, 0.1, 1)
    np.testing.assert_array_equal(classifier(sure), 1 - probs <= 0.6)
    assert classifier(sure).all()


def test_a_key_draws_one_number_a_row() -> None:
    key, test_key = jax.random.split(jax.random.key(0))
    classifier = calibration.make_conformal_classifier(
        LOGITS[None], LABELS, 0.2, key=key, allow_empty=True
    )
    scores = calibration.aps_scores(PROBS, jax.random.uniform(key, [10]))
    at_label = np.take_along_axis(np.asarray(scores), LABELS, 1)[:, 0]
    expected = calibration.conformal_quantile(at_label, 0.2)
    np.testing.assert_allclose(classifier.quantile, expected, rtol=1e-5)
    probs = scipy.special.softmax(TEST_LOGITS[0], -1)
    scores = calibration.aps_scores(probs, jax.random.uniform(test_key, [3]))
    np.testing.assert_array_equal(
        classifier(TEST_LOGITS, test_key), scores <= classifier.quantile
    )

    with pytest.raises(ValueError, match="key must be given if, and only if"):
        classifier(TEST_LOGITS)
    plain = calibration.make_conformal_classifier(LOGITS[None], LABELS, 0.2)
    with pytest.raises(ValueError, match="key must be given if, and only if"):
        plain(TEST_LOGITS, test_key)
    with pytest.raises(ValueError, match=r"must be of 3 classes, as in the .* got 2"):
        plain(TEST_LOGITS[..., :2])


def test_the_score_of_the_last_class_is_one() -> None:
    probs = scipy.special.softmax(np.random.default_rng(0).normal(size=(500, 7)), -1)
    scores = calibration.aps_scores(probs)
    assert (scores[np.arange(500), probs.argmin(1)] == 1).all()  # Cumulated: 32 % are.


@pytest.mark.parametrize("method", ["thr", "aps", "raps"])
def test_coverage_is_exact(method: Any) -> None:
    """At n = 10 and α = .25 it is 9/11, over calibrations and rows alike."""
    num_draws, n = 2000, 10
    rng = np.random.default_rng(1)
    logits = rng.normal(size=[num_draws, n + 1, 4])
    probs = scipy.special.softmax(logits, -1).reshape(-1, 4)
    # The network is too sure, and it knows less than the truth.
    labels = (rng.uniform(size=[len(probs), 1]) > probs.cumsum(1)).sum(1)
    probs = scipy.special.softmax(3 * logits + rng.normal(size=logits.shape), -1)
    probs = probs.reshape(-1, 4)
    uniforms = rng.uniform(size=len(probs))
    score = {
        "thr": lambda: calibration.thr_scores(probs),
        "aps": lambda: calibration.aps_scores(probs, uniforms),
        "raps": lambda: calibration.raps_scores(probs, uniforms=uniforms),
    }[method]
    scores = np.asarray(score())[np.arange(len(probs)), labels].reshape(num_draws, -1)
    quantiles = [calibration.conformal_quantile(s, 0.25) for s in scores[:, :n]]
    covered = (scores[:, n] <= quantiles).mean()
    expected = 9 / 11
    standard_error = np.sqrt(expected * (1 - expected) / num_draws)
    assert abs(covered - expected) < 4 * standard_error


def test_intervals() -> None:
    scores = calibration.cqr_scores(LOWER, UPPER, TARGETS[:, None])
    assert scores.shape == (9,)
    quantile = calibration.conformal_quantile(scores, 0.2)
    np.testing.assert_allclose(quantile, 0.3, rtol=1e-5)
    interval = calibration.ConformalInterval(quantile, 0.2)
    # Of eleven evenly spaced samples, .1 and .9 are the second and the tenth.
    samples = np.linspace(0.1, 1.1, 11)[:, None, None]
    lower, upper = interval(samples)
    np.testing.assert_allclose(lower, [[-0.1]], atol=1e-6)
    np.testing.assert_allclose(upper, [[1.3]], rtol=1e-5)


def test_intervals_are_calibrated_on_samples() -> None:
    samples = np.random.default_rng(0).normal(size=[50, 9, 1])
    interval = calibration.make_conformal_interval(samples, TARGETS[:, None], 0.2)
    lower, upper = np.quantile(samples, [0.1, 0.9], axis=0)
    expected = np.sort(np.maximum(lower[:, 0] - TARGETS, TARGETS - upper[:, 0]))[7]
    np.testing.assert_allclose(interval.quantile, expected, rtol=1e-5)
    new = interval(samples[:, :4])
    np.testing.assert_allclose(new[0], lower[:4] - expected, rtol=1e-5)
    np.testing.assert_allclose(new[1], upper[:4] + expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5])
def test_alpha_out_of_range(alpha: float) -> None:
    for call in (
        lambda: calibration.conformal_quantile(np.ones(3), alpha),
        lambda: calibration.make_conformal_classifier(LOGITS[None], LABELS, alpha),
        lambda: calibration.make_conformal_interval(
            LOGITS[:, :, None], LABELS[:3], alpha
        ),
    ):
        with pytest.raises(
            ValueError, match=rf"alpha must be in \(0, 1\), got {alpha}"
        ):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.conformal_quantile([], 0.1), "scores must not be empty"),
        (lambda: calibration.conformal_quantile([1, np.nan], 0.1), "got NaN"),
        (
            lambda: calibration.conformal_quantile(np.ones([2, 1]), 0.1),
            "must have shape",
        ),
        (lambda: calibration.raps_scores(PROBS, -1.0), r"penalty must be >= 0, got -1"),
        (lambda: calibration.raps_scores(PROBS, k_reg=-1), "k_reg must be an integer"),
        (lambda: calibration.aps_scores(PROBS, np.ones([10, 3])), "uniforms must have"),
        (lambda: calibration.thr_scores(LOGITS[None]), "probs must have shape"),
        (
            lambda: calibration.cqr_scores(
                LOWER, np.where(LOWER == 1, 0, UPPER), TARGETS
            ),
            r"upper must be at least lower, got \[1\.0, 0\.0\] in row 2",
        ),
        (lambda: calibration.cqr_scores(LOWER, UPPER[:1], TARGETS), "upper must have"),
        (
            lambda: calibration.make_conformal_classifier(
                LOGITS[None], LABELS, 0.1, "x"
            ),
            "method must be one of 'thr', 'aps', 'raps'; got 'x'",
        ),
        (
            lambda: calibration.make_conformal_classifier(
                LOGITS[None], LABELS + 1, 0.1
            ),
            r"labels must be integers in \[0, 3\), got 3",
        ),
        (
            lambda: calibration.make_conformal_classifier(
                LOGITS[None, :0], LABELS[:0], 0.1
            ),
            "logits must not be empty",
        ),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_half_precision_is_scored_in_float64() -> None:
    probs = jnp.array([[0.5, 0.25, 0.25]], jnp.bfloat16)
    scores = calibration.raps_scores(probs, penalty=1e-9)
    np.testing.assert_allclose(scores, [[0.5, 0.75 + 1e-9, 1 + 2e-9]], rtol=1e-15)


class _Softmax(base.ClassifierMixin, base.BaseEstimator):
    """A trained classifier whose inputs are its logits."""

    classes_ = np.arange(4)

    def fit(self, x: Any, y: Any) -> Any:
        return self

    def predict_proba(self, x: Any) -> Any:
        return scipy.special.softmax(x, -1)

    def predict(self, x: Any) -> Any:
        return x.argmax(-1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_quantiles_are_those_of_mapie(score: str, alpha: float) -> None:
    mapie = pytest.importorskip("mapie.classification")
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=[60, 4]), rng.integers(4, size=60)
    oracle = mapie.SplitConformalClassifier(
        _Softmax(), 1 - alpha, score, prefit=True, random_state=0
    )
    oracle.conformalize(logits, labels).predict_set(logits)
    (expected,) = oracle._mapie_classifier.quantiles_
    probs = scipy.special.softmax(logits, -1)
    uniforms = np.random.RandomState(0).uniform(size=60)
    scores = {
        "lac": lambda: calibration.thr_scores(probs),
        "aps": lambda: calibration.aps_scores(probs, uniforms),
    }[score]()[np.arange(60), labels]
    quantile = calibration.conformal_quantile(scores, alpha)
    np.testing.assert_allclose(quantile, expected, rtol=1e-9)
