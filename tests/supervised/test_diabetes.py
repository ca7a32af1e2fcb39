"""Regression with a likelihood on real data, the diabetes that scikit-learn bundles."""

import functools

import haiku as hk
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn import datasets

from enn import losses, metrics, networks, supervised, utils
from enn.datasets import ArrayBatch

NUM_TRAIN = 300
LEVEL = 0.8


@functools.cache
def _data():
    """Inputs with unit covariance, and the progression of the disease a year later."""
    x, y = datasets.load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order, None].astype(np.float32)
    left, _, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return (left * np.sqrt(len(y))).astype(np.float32), y


def _train(enn, loss, num_steps, learning_rate, batch_size=None):
    x, y = (array[:NUM_TRAIN] for array in _data())
    target = ArrayBatch(x=x, y=(y - y.mean()) / y.std())
    experiment = supervised.Experiment(
        enn,
        losses.average_single_index_loss(loss, 5),
        optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        utils.make_batch_iterator(target, batch_size),
        train_log_freq=None,
    )
    experiment.train(num_steps)
    return experiment


def _in_units_of_the_target(parse, outputs):
    y = _data()[1][:NUM_TRAIN]
    mean, std = parse(outputs)
    return mean * y.std() + y.mean(), std * y.std()


@pytest.mark.slow
def test_a_linear_network_with_a_learned_scale_is_least_squares():
    linear = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x))
    loss = losses.GaussianNLLLoss(min_scale=1e-3)
    enn = networks.add_learned_scale(linear)
    experiment = _train(enn, loss, num_steps=1500, learning_rate=0.03)
    x, y = _data()
    columns = np.hstack([x, np.ones([len(x), 1])])
    fit, *_ = np.linalg.lstsq(columns[:NUM_TRAIN], y[:NUM_TRAIN])
    wanted = columns @ fit
    residual_std = np.sqrt(np.mean((y - wanted)[:NUM_TRAIN] ** 2))

    outputs = supervised.sample_predictions(experiment, x, 1)
    parse = functools.partial(_in_units_of_the_target, loss.parse)
    mean, std = parse(outputs)
    # The targets have a standard deviation of 78.
    np.testing.assert_allclose(mean[0], wanted, atol=0.05)
    np.testing.assert_allclose(std, residual_std, rtol=1e-3)
    nll = metrics.make_mixture_nll_calculator(parse)(
        outputs[:, NUM_TRAIN:], y[NUM_TRAIN:]
    )
    law = scipy.stats.norm(wanted[NUM_TRAIN:], residual_std)
    np.testing.assert_allclose(nll, -law.logpdf(y[NUM_TRAIN:]).mean(), rtol=1e-4)


@functools.cache
def _predictions():
    """Means and scales of an ensemble, `[30, 142, 1]`, its outputs and the targets."""
    enn = networks.MLPEnsembleMatchedPrior([20, 2], num_ensemble=10)
    enn, loss = networks.scale_prior(enn, [1, 0]), losses.GaussianNLLLoss(0.1)
    experiment = _train(enn, loss, 400, learning_rate=0.003, batch_size=100)
    x, y = _data()
    outputs = supervised.sample_predictions(experiment, x[NUM_TRAIN:], 30)
    parse = functools.partial(_in_units_of_the_target, loss.parse)
    mean, std = (np.asarray(part, np.float64) for part in parse(outputs))
    return parse, outputs, mean, std, y[NUM_TRAIN:]


def _streamed(metric):
    """Returns the metric over batches of 50, 50 and 42 rows."""
    _, outputs, _, _, y = _predictions()
    state = None
    for rows in (slice(50), slice(50, 100), slice(100, None)):
        state = metric(outputs[:, rows], y[rows], state)
    return state


def _quantile(level, row):
    _, _, mean, std, _ = _predictions()

    def excess(y):
        return scipy.stats.norm.cdf(y, mean[:, row], std[:, row]).mean() - level

    return scipy.optimize.brentq(excess, -1000, 1000, xtol=1e-9)


@pytest.mark.slow
def test_an_ensemble_is_better_than_what_ignores_the_patient():
    parse, outputs, mean, _, y = _predictions()
    y_train = _data()[1][:NUM_TRAIN]
    ignorant = -scipy.stats.norm.logpdf(y, y_train.mean(), y_train.std()).mean()
    nll = float(metrics.make_mixture_nll_calculator(parse)(outputs, y))
    assert 5 < nll < ignorant - 0.15
    assert mean.std(axis=0).min() > 1  # Members differ.


@pytest.mark.slow
def test_metrics_of_an_ensemble_are_those_of_scipy():
    parse, outputs, mean, std, y = _predictions()
    by_member = scipy.stats.norm.logpdf(y, mean, std)[..., 0]
    low, high = (
        np.array([_quantile(level, row) for row in range(len(y))])[:, None]
        for level in (0.1, 0.9)
    )

    def score(row):
        def integrand(t):
            cdf = scipy.stats.norm.cdf(t, mean[:, row], std[:, row]).mean()
            return (cdf - (t >= y[row, 0])) ** 2

        parts = [(-1000, y[row, 0]), (y[row, 0], 1500)]
        return sum(
            scipy.integrate.quad(integrand, *part, limit=200)[0] for part in parts
        )

    wanted = {
        "nll": -(scipy.special.logsumexp(by_member, axis=0) - np.log(30)).mean(),
        "coverage": ((low <= y) & (y <= high)).mean(),
        "width": (high - low).mean(),
        "crps": np.mean([score(row) for row in range(len(y))]),
    }
    metrics_by_name = {
        "nll": metrics.make_mixture_nll_calculator(parse),
        "coverage": metrics.make_coverage_calculator(LEVEL, parse),
        "width": metrics.make_interval_width_calculator(LEVEL, parse),
        "crps": metrics.make_mixture_crps_calculator(parse),
    }
    for name, metric in metrics_by_name.items():
        streamed = _streamed(
            metrics.make_average_aggregator(metric, weight_by_size=True)
        )
        np.testing.assert_allclose(
            streamed.value, wanted[name], rtol=1e-4, err_msg=name
        )
    quantiles = metrics.calculate_mixture_quantiles(
        outputs, np.array([0.1, 0.9]), parse
    )
    np.testing.assert_allclose(quantiles, [low, high], rtol=1e-4, atol=0.01)


@pytest.mark.slow
def test_predictions_of_an_ensemble_are_calibrated():
    parse, outputs, _, _, y = _predictions()
    pit = np.asarray(metrics.calculate_mixture_cdf(outputs, y, parse))
    curve = metrics.calibration_curve(
        _streamed(metrics.make_calibration_aggregator(10, parse)).extra
    )
    wanted = [(pit < level).mean() for level in curve.level]
    np.testing.assert_allclose(curve.observed[:-1], wanted[:-1], atol=1e-6)
    assert curve.observed[-1] == 1
    assert scipy.stats.kstest(pit[:, 0], "uniform").pvalue > 0.01
