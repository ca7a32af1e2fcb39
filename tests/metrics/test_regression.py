import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics
from tests.support.batches import normal

SAMPLES = normal(7, 12, 1, seed=4)
TARGETS = normal(12, 1, seed=5)


def _slow_crps(samples, targets):
    samples, targets = np.float64(samples), np.float64(targets)
    pairs = np.abs(samples[:, None] - samples[None]).mean(axis=(0, 1))
    return np.mean(np.abs(samples - targets).mean(axis=0) - pairs / 2)


@pytest.mark.strict
def test_crps_against_all_pairs():
    value = metrics.calculate_crps(SAMPLES, TARGETS)
    np.testing.assert_allclose(value, _slow_crps(SAMPLES, TARGETS), rtol=1e-5)


@pytest.mark.parametrize("target", [-3.0, 0.2, 5.0])
def test_crps_of_many_samples_is_that_of_their_distribution(target):
    # The closed form for a normal distribution (Gneiting and Raftery, 2007).
    quantiles = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000, loc=1, scale=2)
    z = (target - 1) / 2
    pdf, cdf = scipy.stats.norm.pdf(z), scipy.stats.norm.cdf(z)
    expected = 2 * (z * (2 * cdf - 1) + 2 * pdf - 1 / np.sqrt(np.pi))
    value = metrics.calculate_crps(
        np.asarray(quantiles, np.float32)[:, None, None], np.full([1, 1], target)
    )
    np.testing.assert_allclose(value, expected, rtol=2e-3)


def test_crps_of_one_sample_is_the_absolute_error():
    value = metrics.calculate_crps(SAMPLES[:1], TARGETS)
    np.testing.assert_allclose(value, np.abs(SAMPLES[0] - TARGETS).mean(), rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-9, 9))
def test_crps_scales_with_the_target_and_is_not_negative(seed, scale, shift):
    rng = np.random.default_rng(seed)
    samples, targets = rng.normal(size=(7, 12, 1)), rng.normal(size=(12, 1))
    value = metrics.calculate_crps(samples, targets)
    assert value >= 0
    moved = metrics.calculate_crps(
        scale * samples[::-1] + shift, scale * targets + shift
    )
    np.testing.assert_allclose(moved, scale * value, rtol=1e-3)


@pytest.mark.strict
@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_gaussian_nll_matches_moments(noise_std):
    std = np.sqrt(np.var(SAMPLES, axis=0) + noise_std**2)
    expected = -scipy.stats.norm.logpdf(TARGETS, np.mean(SAMPLES, axis=0), std).mean()
    value = metrics.make_gaussian_nll_calculator(noise_std)(SAMPLES, TARGETS)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def _slow_joint_ll(samples, targets, noise_std):
    log_probs = scipy.stats.norm.logpdf(np.float64(targets), samples, noise_std)
    return scipy.special.logsumexp(log_probs.sum(axis=(1, 2))) - np.log(len(samples))


@pytest.mark.strict
@pytest.mark.parametrize("noise_std", [0.03, 1.0])
def test_gaussian_joint_ll_is_of_products_within_each_sample(noise_std):
    value = metrics.calculate_gaussian_joint_ll(SAMPLES, TARGETS, noise_std)
    expected = _slow_joint_ll(SAMPLES, TARGETS, noise_std)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gaussian_joint_ll_of_linear_functions_is_the_normal_evidence():
    # f = z x with z ~ N(0, 1) gives y ~ N(0, x xᵀ + σ² I).
    x, y = np.array([[1.0], [2.0]]), np.array([[0.5], [1.5]])
    z = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    expected = scipy.stats.multivariate_normal.logpdf(
        y[:, 0], np.zeros(2), x @ x.T + 0.25 * np.eye(2)
    )
    samples = np.asarray(z[:, None, None] * x, np.float32)
    value = metrics.calculate_gaussian_joint_ll(samples, np.asarray(y), 0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-3)


@pytest.mark.parametrize("tau", [1, 5, 12])
def test_gaussian_joint_nll_is_the_mean_over_groups_without_the_remainder(tau):
    starts = range(0, 12 - tau + 1, tau)
    groups = [slice(start, start + tau) for start in starts]
    expected = -np.mean(
        [_slow_joint_ll(SAMPLES[:, g], TARGETS[g], 0.7) for g in groups]
    )
    metric = metrics.make_gaussian_nll_joint_calculator(0.7, tau)
    np.testing.assert_allclose(metric(SAMPLES, TARGETS), expected, rtol=1e-5)


METRICS = {
    "crps": metrics.calculate_crps,
    "gaussian": metrics.make_gaussian_nll_calculator(0.1),
    "joint": metrics.make_gaussian_nll_joint_calculator(0.1, 3),
    "joint_ll": lambda x, y: metrics.calculate_gaussian_joint_ll(x, y, 0.1),
}


@pytest.mark.parametrize("name", METRICS)
def test_wrong_shapes_are_errors(name):
    with pytest.raises(ValueError, match=r"targets must have shape \[batch, 1\]"):
        METRICS[name](SAMPLES, TARGETS.T)
    with pytest.raises(ValueError, match="samples must have shape"):
        METRICS[name](SAMPLES[..., 0], TARGETS)


@pytest.mark.parametrize("name", METRICS)
def test_targets_are_one_a_row_with_or_without_a_trailing_axis(name):
    # Targets [12] would broadcast to [7, 12, 12] differences.
    values = [METRICS[name](SAMPLES, y) for y in (TARGETS, TARGETS[:, 0])]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("name", METRICS)
def test_gradients_are_finite(name):
    grad = jax.jit(jax.grad(METRICS[name]))(SAMPLES, TARGETS)
    assert np.isfinite(grad).all()
    assert np.any(grad != 0)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_noise_must_not_be_negative(wrong):
    with pytest.raises(ValueError, match="noise_std must be >= 0"):
        metrics.make_gaussian_nll_calculator(wrong)
    with pytest.raises(ValueError, match="noise_std must be > 0"):
        metrics.make_gaussian_nll_joint_calculator(wrong)
    # Was the likelihood for a standard deviation of 1.
    with pytest.raises(ValueError, match="noise_std must be > 0"):
        metrics.calculate_gaussian_joint_ll(SAMPLES, TARGETS, wrong)


def test_joint_calculator_needs_noise_and_enough_rows():
    with pytest.raises(ValueError, match="noise_std must be > 0, got 0"):
        metrics.make_gaussian_nll_joint_calculator(0)
    with pytest.raises(ValueError, match="tau must be an integer >= 1"):
        metrics.make_gaussian_nll_joint_calculator(1.0, tau=0)
    with pytest.raises(ValueError, match="at least 13 rows, got 12"):
        metrics.make_gaussian_nll_joint_calculator(1.0, tau=13)(SAMPLES, TARGETS)


@pytest.mark.parametrize("num_samples", [2, 3, 100])
def test_a_fair_crps_does_not_depend_on_the_number_of_samples(num_samples):
    # Of N(0, 1) at 0: E|X| - E|X - X'| / 2 = sqrt(2 / pi) - 1 / sqrt(pi) = 0.2337.
    rows = 200_000 // num_samples
    samples = np.random.default_rng(0).normal(size=(num_samples, rows, 1))
    targets = np.zeros([rows, 1])
    expected = np.sqrt(2 / np.pi) - 1 / np.sqrt(np.pi)
    fair = metrics.calculate_crps(samples, targets, fair=True)
    np.testing.assert_allclose(fair, expected, atol=6e-3)
    empirical = metrics.calculate_crps(samples, targets)
    excess = 1 / (np.sqrt(np.pi) * num_samples)
    np.testing.assert_allclose(empirical - fair, excess, rtol=0.02)


def test_a_fair_crps_of_one_sample_is_an_error():
    with pytest.raises(ValueError, match="needs at least 2 samples, got 1"):
        metrics.calculate_crps(np.zeros([1, 3, 1]), np.zeros([3, 1]), fair=True)
