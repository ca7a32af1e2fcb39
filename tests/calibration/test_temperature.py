"""Temperatures against closed forms and a fine grid."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from enn import calibration, networks
from enn.metrics import make_nll_joint_calculator, make_nll_marginal_calculator
from tests.calibration.cases import LABELS, LOGITS, SAMPLES


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize(
    ("logits", "temperature", "before", "after"),
    [
        (LOGITS[None], 0.6701696, 0.6119981, 0.5803421),
        (SAMPLES, 0.4902430, 0.6130502, 0.5325411),
    ],
)
def test_least_negative_log_likelihood(
    logits: Any, temperature: float, before: float, after: float
) -> None:
    fitted = calibration.fit_temperature(logits, LABELS)
    assert isinstance(fitted, float)
    np.testing.assert_allclose(fitted, temperature, rtol=1e-5)
    nll = make_nll_marginal_calculator()
    np.testing.assert_allclose(nll(logits, LABELS), before, rtol=1e-5)
    np.testing.assert_allclose(nll(logits / fitted, LABELS), after, rtol=1e-5)


@pytest.mark.parametrize("gap", [4.0, 0.02])
def test_two_classes_have_a_closed_form(gap: float) -> None:
    logits = np.tile([gap, 0.0], [1, 10, 1])
    labels = np.array([[0]] * 8 + [[1]] * 2)
    fitted = calibration.fit_temperature(logits, labels)
    np.testing.assert_allclose(fitted, gap / np.log(4), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [2, 5])
def test_joint_predictions(tau: int) -> None:
    """Beside SciPy's minimum of the definition."""

    def nll(log_temperature: float) -> float:
        scaled = SAMPLES / np.exp(log_temperature)
        log_probs = scipy.special.log_softmax(scaled, -1)
        rows = log_probs[:, np.arange(10), LABELS[:, 0]]
        groups = rows.reshape(2, -1, tau).sum(2)
        return -(scipy.special.logsumexp(groups, 0) - np.log(2)).mean()

    expected = np.exp(scipy.optimize.minimize_scalar(nll, (-2.0, 0.0)).x)
    fitted = calibration.fit_temperature(SAMPLES, LABELS, tau)
    np.testing.assert_allclose(fitted, expected, rtol=1e-4)
    assert abs(fitted - calibration.fit_temperature(SAMPLES, LABELS)) > 0.005
    # Rows that remain are left out, as the metric does.
    more = np.concatenate([SAMPLES, SAMPLES[:, :1]], 1)
    again = calibration.fit_temperature(more, np.append(LABELS, [[1]], 0), tau)
    np.testing.assert_allclose(again, fitted, rtol=1e-6)


@pytest.mark.slow
def test_a_network_is_calibrated_with_its_joint_predictions() -> None:
    enn = networks.MLPEnsembleMatchedPrior([4, 3], num_ensemble=2)
    inputs = np.random.default_rng(0).normal(size=[10, 2]).astype(np.float32)
    params, state = enn.init(jax.random.key(0), inputs, 0)
    logits = networks.make_batch_fwd(enn, 20)(params, state, inputs)
    scaled = networks.scale_enn_output(enn, 1 / 0.7)
    np.testing.assert_allclose(
        make_nll_joint_calculator(5)(
            networks.make_batch_fwd(scaled, 20)(params, state, inputs), LABELS
        ),
        make_nll_joint_calculator(5)(logits / 0.7, LABELS),
        rtol=1e-5,
    )


@pytest.mark.parametrize("scale", [10.0, 1e-3])
def test_no_temperature_is_best(scale: float) -> None:
    right = scale * np.eye(3)[None]
    with pytest.raises(ValueError, match="the predictions are all right"):
        calibration.fit_temperature(right, np.array([[0], [1], [2]]))
    with pytest.raises(ValueError, match="are no better than chance"):
        calibration.fit_temperature(right, np.array([[1], [2], [0]]))


def test_why_no_temperature_is_best() -> None:
    labels = np.array([[0]] * 4 + [[1]])
    with pytest.raises(ValueError, match="are equally likely at all of them"):
        calibration.fit_temperature(np.ones([1, 5, 2]), labels)
    # The best would be 400 / log 4, above the range.
    sure = np.tile([400.0, 0.0], [1, 5, 1])
    with pytest.raises(ValueError, match="than chance, or want a higher one"):
        calibration.fit_temperature(sure, labels)
    with pytest.raises(ValueError, match="logits must be finite"):
        calibration.fit_temperature(np.nan * sure, labels)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 3\), got 3"):
        calibration.fit_temperature(SAMPLES, LABELS + 1)
    with pytest.raises(ValueError, match="tau must be an integer >= 1"):
        calibration.fit_temperature(SAMPLES, LABELS, 0)
    with pytest.raises(ValueError, match="at least 11 rows, got 10"):
        calibration.fit_temperature(SAMPLES, LABELS, 11)
    with pytest.raises(ValueError, match="must not be empty"):
        calibration.fit_temperature(SAMPLES[:, :0], LABELS[:0])
