"""Metrics and priorities against the same formulas in more digits.

Every number must be as near as float32 allows to what float64 gives for the same
logits, also for half-precision logits, many rows, many classes and sure networks.
"""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from enn import active_learning, metrics
from enn.metrics import likelihood, marginal
from tests.support.batches import normal

KEY = jax.random.key(0)
SCORES = {
    "var_ratios": lambda p: 1 - p.mean(0).max(-1),
    "entropy": lambda p: scipy.stats.entropy(p.mean(0), axis=-1),
    "bald": lambda p: scipy.special.rel_entr(p, p.mean(0)).sum(-1).mean(0),
    "variance": lambda p: p.var(0).sum(-1),
    "margin": lambda p: np.subtract(*np.sort(p.mean(0))[:, [-2, -1]].T),
    "ucb": lambda p: (p.mean(0) + p.std(0))[:, 0],
    "scaled_mean": lambda p: p.mean(0)[:, 0],
    "scaled_std": lambda p: p.std(0)[:, 0],
    "nll": lambda p: -np.log(p.mean(0)[:, 1]),
    "joint_nll": lambda p: -10 * np.log(p).mean(0)[:, 1],
}


def _score(name, logits, label=1):
    labels = np.full([logits.shape[1], 1], label)
    return active_learning.get_per_example_priority(name)(logits, labels, KEY)


def _probs(logits):
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def _area(scores, positive):
    ranks = scipy.stats.rankdata(scores)[positive].sum()
    num_positive, num_negative = positive.sum(), (~positive).sum()
    least = num_positive * (num_positive + 1) / 2
    return (ranks - least) / (num_positive * num_negative)


def _ece(confidence, correct):
    gaps = np.bincount((10 * confidence).astype(int), confidence - correct, 10)
    return np.abs(gaps).sum() / len(confidence)


# Names of metrics with what they give of probabilities and labels in float64.
METRICS = {
    "accuracy": (
        marginal.calculate_accuracy,
        lambda p, y: (p.mean(0).argmax(-1) == y).mean(),
    ),
    "brier": (
        metrics.calculate_brier_score,
        lambda p, y: ((p.mean(0) - np.eye(p.shape[-1])[y]) ** 2).sum(-1).mean(),
    ),
    "marginal nll": (
        metrics.make_nll_marginal_calculator(),
        lambda p, y: -np.log(p.mean(0)[np.arange(len(y)), y]).mean(),
    ),
    "joint nll": (
        metrics.make_nll_joint_calculator(8),
        lambda p, y: (
            -np.mean(
                scipy.special.logsumexp(_by_group(p, y, 8), axis=0) - np.log(len(p))
            )
        ),
    ),
    "joint": (
        metrics.calculate_joint_ll,
        lambda p, y: scipy.special.logsumexp(_by_group(p, y, len(y))) - np.log(len(p)),
    ),
    "ece": (
        metrics.SingleBatchECE(10),
        lambda p, y: _ece(p.mean(0).max(-1), p.mean(0).argmax(-1) == y),
    ),
    "aurc": (
        lambda logits, labels: metrics.calculate_aurc(
            labels[:, 0], metrics.variation_ratio(logits)
        ),
        lambda p, y: np.mean([(1 - p.mean(0).max(-1))[y <= c].mean() for c in y[:999]]),
    ),
}


def _by_group(p, y, size):
    log_likelihoods = np.log(p[:, np.arange(len(y)), y])
    return log_likelihoods.reshape(len(p), -1, size).sum(-1)


def _batch(rows, classes, dtype):
    logits = jnp.asarray(2 * normal(3, rows, classes, seed=rows), dtype)
    return logits, np.arange(rows)[:, None] * 7 % classes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "classes", "dtype"),
    [(40_000, 4, "float32"), (40, 1000, "bfloat16"), (40, 1000, "float16")],
)
def test_scores_are_those_of_float64(rows, classes, dtype):
    logits, _ = _batch(rows, classes, dtype)
    for name, reference in SCORES.items():
        scores = _score(name, logits)
        assert scores.dtype == jnp.float32, name
        expected = reference(_probs(logits))
        np.testing.assert_allclose(scores, expected, 2e-5, 1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("rows", "classes", "dtype"),
    [
        (40_000, 4, "float32"),
        pytest.param(40_000, 4, "bfloat16", marks=pytest.mark.slow),
        (40, 1000, "float16"),
    ],
)
def test_metrics_are_those_of_float64(rows, classes, dtype):
    logits, labels = _batch(rows, classes, dtype)
    for name, (metric, reference) in METRICS.items():
        if name == "aurc" and rows > 40:
            continue
        value = metric(logits, labels)
        assert value.dtype == jnp.float32, name
        expected = reference(_probs(logits), labels[:, 0])
        np.testing.assert_allclose(value, expected, 2e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_regression_metrics_are_those_of_float64(dtype):
    # Sums of 40,000 rows, and squares of 300, are infinite in float16.
    samples = jnp.asarray(300 + normal(4, 40_000, 1, seed=1), dtype)
    targets = jnp.asarray(300 + normal(40_000, 1, seed=2), dtype)
    x, y = (np.asarray(values, np.float64) for values in (samples, targets))
    between = np.abs(x[:, None] - x[None]).mean((0, 1))
    crps = np.mean(np.abs(x - y).mean(0) - between / 2)
    std = np.sqrt(x.var(0) + 0.5**2)
    nll = -scipy.stats.norm.logpdf(y, x.mean(0), std).mean()
    by_row = scipy.stats.norm.logpdf(y, x, 0.5)
    groups = by_row.reshape(4, -1, 10).sum(-1)
    joint = np.mean(np.log(4) - scipy.special.logsumexp(groups, axis=0))
    for metric, expected in [
        (metrics.calculate_crps, crps),
        (metrics.make_gaussian_nll_calculator(0.5), nll),
        (metrics.make_gaussian_nll_joint_calculator(0.5, 10), joint),
    ]:
        np.testing.assert_allclose(metric(samples, targets), expected, 2e-6)


@pytest.mark.parametrize("name", ["bald", "variance", "scaled_std"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_members_that_agree_have_no_epistemic_uncertainty(name, dtype):
    # BALD of three equal bfloat16 members was between -0.016 and 0.016.
    for num_members in (3, 7):
        one = jnp.asarray(normal(1, 200, 10, seed=3), dtype)
        scores = _score(name, jnp.tile(one, [num_members, 1, 1]))
        # Compiled with optimisations, p - p' is rounded once less than p.
        np.testing.assert_allclose(scores, np.zeros(200), atol=1e-8)
        if name != "scaled_std":
            np.testing.assert_allclose(scores, np.zeros(200), atol=1e-15)


def _exact(logits):
    """Probabilities with 80 digits."""
    exps = np.vectorize(lambda x: decimal.Decimal(float(x)).exp())(logits)
    return exps / exps.sum(axis=-1, keepdims=True)


def _exact_entropy(p):
    return -(p * np.vectorize(lambda x: x.ln())(p)).sum(-1)


EXACT = {
    "var_ratios": lambda p: 1 - p.mean(0).max(-1),
    "entropy": lambda p: _exact_entropy(p.mean(0)),
    "bald": lambda p: _exact_entropy(p.mean(0)) - _exact_entropy(p).mean(0),
    "variance": lambda p: p.var(0).sum(-1),
    "scaled_std": lambda p: np.sqrt(p.var(0)[:, 0].astype(np.float64)),
    "nll": lambda p: -np.vectorize(lambda x: x.ln())(p.mean(0)[:, 0]),
    "brier": lambda p: [(((p.mean(0) - [1, 0, 0]) ** 2).sum(-1)).mean()],
    "marginal nll": lambda p: EXACT["nll"](p).mean(),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("margin", [12, 40])
def test_sure_networks_keep_their_digits(name, margin):
    # 1 - p was 0 for all of them, and so all scores were tied.
    margins = margin + np.arange(5) * np.array([[0.25], [0.5], [-0.5]])
    if name in ("variance", "brier") and margin == 40:
        margins = margins - 5  # Their squares are the smallest that float32 knows.
    logits = np.stack([margins, -0.5 * margins, 0 * margins], axis=-1)
    logits = np.asarray(logits, np.float32)
    with decimal.localcontext() as context:
        context.prec = 80
        expected = np.asarray(EXACT[name](_exact(logits)), np.float64)
    if name in METRICS:
        values = METRICS[name][0](logits, np.zeros([5, 1], int))
    else:
        values = _score(name, logits, label=0)
    start = 1 if name in ("bald", "variance", "scaled_std") else 0
    np.testing.assert_allclose(
        np.atleast_1d(values)[start:], np.atleast_1d(expected)[start:], 2e-5
    )


def test_average_log_likelihoods_close_to_zero_keep_their_digits():
    x = np.array([-1e-10, -3e-10], np.float32)
    np.testing.assert_allclose(
        metrics.average_sampled_log_likelihood(x), -2e-10, rtol=1e-6
    )


def test_spreads_whose_squares_vanish_have_a_density():
    samples = np.array([[[1e-30]], [[3e-30]]], np.float32)
    value = metrics.make_gaussian_nll_calculator()(samples, np.array([[2e-30]]))
    expected = -scipy.stats.norm.logpdf(0, 0, 1e-30)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("batch", [40, 400])
def test_running_means_keep_their_digits(batch):
    losses = np.asarray(0.1 + 1e-3 * normal(40_000, seed=4), np.float32)

    def step(state, rows):
        return mean(rows[None, :, None], rows[:, None], state), None

    mean = metrics.make_average_aggregator(
        lambda logits, labels: labels.mean(), weight_by_size=True
    )
    state, _ = jax.lax.scan(step, metrics.MetricsState(), losses.reshape(-1, batch))
    np.testing.assert_allclose(state.value, losses.astype(float).mean(), rtol=1e-6)


def test_logits_may_be_the_result_of_the_same_program():
    """Compiled with less optimisation, the largest logit was lost: it was rounded
    differently from the maximum that it was compared with."""
    logits = np.random.default_rng(0).normal(size=[1, 10, 3]).astype(np.float32)
    labels = np.arange(10)[:, None] % 3

    def at(temperature):
        return likelihood.label_log_likelihoods(logits / temperature, labels)

    expected = scipy.special.log_softmax(logits.astype(float) / 0.67, -1)
    expected = expected[:, np.arange(10), labels[:, 0]]
    np.testing.assert_allclose(jax.jit(at)(0.67), expected, rtol=1e-5)
