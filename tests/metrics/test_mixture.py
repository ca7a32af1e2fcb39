"""Metrics of mixtures of Gaussians against SciPy and closed forms."""

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from enn import metrics
from tests.support.batches import normal

MEAN, STD = normal(5, 12, 2, seed=1), np.exp(normal(5, 12, 2, seed=2))
OUTPUTS = np.concatenate([MEAN, STD], axis=-1)
TARGETS = 2 * normal(12, 2, seed=3)
CDF = scipy.stats.norm.cdf(TARGETS, MEAN, STD).mean(0)
CALCULATORS = {
    "coverage": metrics.make_coverage_calculator(0.5),
    "crps": metrics.make_mixture_crps_calculator(),
    "joint nll": metrics.make_mixture_nll_joint_calculator(4),
    "nll": metrics.make_mixture_nll_calculator(),
    "width": metrics.make_interval_width_calculator(0.5),
}
CALIBRATION = metrics.make_calibration_aggregator(4)
AGGREGATORS = {
    name: metrics.make_average_aggregator(metric, weight_by_size=True)
    for name, metric in CALCULATORS.items()
} | {"calibration": CALIBRATION}


def _log_mean_exp(log_likelihoods):
    return scipy.special.logsumexp(log_likelihoods, axis=0) - np.log(5)


def _quantile(level, b, k):
    """The root of the distribution function, far outside of all parts."""

    def excess(y):
        return scipy.stats.norm.cdf(y, MEAN[:, b, k], STD[:, b, k]).mean() - level

    return scipy.optimize.brentq(excess, -100, 100, xtol=1e-12)


QUANTILES = np.array(
    [
        [[_quantile(level, b, k) for k in range(2)] for b in range(12)]
        for level in (0.25, 0.75)
    ]
)


def test_likelihoods_are_those_of_the_mixture():
    by_row = scipy.stats.norm.logpdf(TARGETS, MEAN, STD).sum(-1)
    nll = CALCULATORS["nll"](OUTPUTS, TARGETS)
    np.testing.assert_allclose(nll, -_log_mean_exp(by_row).mean(), rtol=1e-6)
    groups = by_row.reshape(5, 3, 4).sum(-1)
    joint = CALCULATORS["joint nll"](OUTPUTS, TARGETS)
    np.testing.assert_allclose(joint, -_log_mean_exp(groups).mean(), rtol=1e-6)


def test_crps_is_the_integral_of_its_definition():
    # The integral over y of (F(y) - 1[y >= target])^2.
    def score(b, k):
        def integrand(y):
            cdf = scipy.stats.norm.cdf(y, MEAN[:, b, k], STD[:, b, k]).mean()
            return (cdf - (y >= TARGETS[b, k])) ** 2

        parts = [(-60, TARGETS[b, k]), (TARGETS[b, k], 60)]
        return sum(scipy.integrate.quad(integrand, *p, limit=200)[0] for p in parts)

    expected = np.mean([score(b, k) for b in range(3) for k in range(2)])
    value = CALCULATORS["crps"](OUTPUTS[:, :3], TARGETS[:3])
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_crps_of_one_normal_is_gneitings():
    z = 0.7
    pdf, cdf = scipy.stats.norm.pdf(z), scipy.stats.norm.cdf(z)
    expected = 2 * (z * (2 * cdf - 1) + 2 * pdf - 1 / np.sqrt(np.pi))
    outputs = np.array([[[1.0, 2.0]]])
    value = CALCULATORS["crps"](outputs, np.array([[1 + 2 * z]]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_distribution_function_and_quantiles_are_those_of_the_mixture():
    np.testing.assert_allclose(
        metrics.calculate_mixture_cdf(OUTPUTS, TARGETS), CDF, 1e-5, 1e-7
    )
    quantiles = metrics.calculate_mixture_quantiles(OUTPUTS, np.array([0.25, 0.75]))
    np.testing.assert_allclose(quantiles, QUANTILES, 1e-5, 1e-6)


def test_extreme_quantiles_of_parts_far_apart_are_found():
    outputs = np.array([[[-1e4, 1.0]], [[1e4, 3.0]]], np.float32)
    levels = np.array([1e-4, 0.3, 0.9])
    quantiles = metrics.calculate_mixture_quantiles(outputs, levels)
    expected = [
        scipy.stats.norm.ppf(2e-4, -1e4, 1),
        scipy.stats.norm.ppf(0.6, -1e4, 1),
        scipy.stats.norm.ppf(0.8, 1e4, 3),
    ]
    np.testing.assert_allclose(quantiles[:, 0, 0], expected, atol=3e-3)


def test_intervals_are_between_quantiles():
    low, high = QUANTILES
    inside = np.mean((low <= TARGETS) & (high >= TARGETS))
    assert 0 < inside < 1
    coverage = CALCULATORS["coverage"](OUTPUTS, TARGETS)
    np.testing.assert_allclose(coverage, inside, rtol=1e-6)
    width = CALCULATORS["width"](OUTPUTS, TARGETS)
    np.testing.assert_allclose(width, np.mean(high - low), rtol=1e-5)


def test_calibration_compares_levels_with_how_often_they_hold():
    state = CALIBRATION(OUTPUTS, TARGETS)
    curve = metrics.calibration_curve(state.extra)
    np.testing.assert_allclose(curve.level, [0, 0.25, 0.5, 0.75, 1])
    observed = [np.mean(level > CDF) for level in curve.level]
    np.testing.assert_allclose(curve.observed, observed, rtol=1e-6)
    error = np.abs(curve.observed - curve.level)[1:].mean()
    np.testing.assert_allclose(state.value, error, rtol=1e-6)


def test_a_network_that_knows_the_noise_is_calibrated():
    x = np.random.default_rng(0).uniform(0.5, 3, [4000, 1])
    targets = x * np.random.default_rng(1).normal(size=[4000, 1])
    right = np.concatenate([0 * x, x], axis=-1)[None]
    wide = np.concatenate([0 * x, 3 * x], axis=-1)[None]
    assert CALIBRATION(right, targets).value < 0.02
    assert CALIBRATION(wide, targets).value > 0.1
    coverage = metrics.make_coverage_calculator(0.9)
    np.testing.assert_allclose(coverage(right, targets), 0.9, atol=0.015)
    assert coverage(wide, targets) > 0.99


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_cut_into_batches_does_not_matter(name):
    aggregator = AGGREGATORS[name]
    whole = aggregator(OUTPUTS, TARGETS)
    state = aggregator(OUTPUTS[:, :4], TARGETS[:4])
    state = aggregator(OUTPUTS[:, 4:], TARGETS[4:], state)
    np.testing.assert_allclose(state.value, whole.value, rtol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_nan_is_no_prediction(name):
    outputs = OUTPUTS.copy()
    outputs[0, 3] = np.nan
    state = jax.jit(AGGREGATORS[name])(outputs, TARGETS)
    assert np.isnan(state.value)
    assert np.isnan(AGGREGATORS[name](OUTPUTS, TARGETS, state).value)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_target_a_row_needs_no_trailing_axis_and_any_float_will_do(name):
    outputs, targets = OUTPUTS[..., [0, 2]].astype(np.float16), TARGETS[:, :1]
    row, column = (AGGREGATORS[name](outputs, y) for y in (targets[:, 0], targets))
    assert float(row.value) == float(column.value)
    assert row.value.dtype == np.float32
    if name != "width":
        with pytest.raises(ValueError, match=r"targets must have shape \[batch, num"):
            AGGREGATORS[name](outputs, targets.T)


def test_constant_noise_gives_a_network_of_means_a_likelihood():
    # One output with noise 0.5: as `make_gaussian_nll_joint_calculator`.
    parse = metrics.make_constant_std(0.5)
    value = metrics.make_mixture_nll_joint_calculator(4, parse)(MEAN, TARGETS)
    by_row = scipy.stats.norm.logpdf(TARGETS, MEAN, 0.5).sum(-1)
    groups = by_row.reshape(5, 3, 4).sum(-1)
    np.testing.assert_allclose(value, -_log_mean_exp(groups).mean(), rtol=1e-6)
    _, std = metrics.make_constant_std(np.array([0.5, 2.0]))(MEAN)
    np.testing.assert_array_equal(std[3, 7], [0.5, 2])


@pytest.mark.parametrize("level", [0, 1, 90, np.nan])
def test_levels_are_probabilities(level):
    for make in [
        metrics.make_coverage_calculator,
        metrics.make_interval_width_calculator,
    ]:
        with pytest.raises(ValueError, match="level must be between 0 and 1, got"):
            make(level)
    with pytest.raises(ValueError, match="levels must be between 0 and 1, got"):
        metrics.calculate_mixture_quantiles(OUTPUTS, np.array([0.5, level]))


def test_wrong_outputs_are_errors():
    nll = CALCULATORS["nll"]
    with pytest.raises(ValueError, match="must have an even last axis"):
        nll(OUTPUTS[..., :3], TARGETS)
    with pytest.raises(ValueError, match="means must have shape"):
        nll(OUTPUTS[0], TARGETS)
    with pytest.raises(ValueError, match="outputs must not be empty"):
        nll(OUTPUTS[:0], TARGETS)
    with pytest.raises(ValueError, match="tau must be an integer >= 1"):
        metrics.make_mixture_nll_joint_calculator(0)
