"""Estimates of KL divergence, beside closed forms and numbers of the specification."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from enn import metrics, testbed
from enn.testbed.estimators import AtManyTaus, log_sum_prod, sample_logits

LABELS = (jnp.arange(12) % 2)[:, None]
PROBITS = jax.random.normal(jax.random.PRNGKey(7), [50, 12, 2])
KEY = jax.random.PRNGKey(3)


@pytest.mark.parametrize(
    ("algorithm", "expected", "num_clusters"),
    [
        (testbed.RandomProjection(7), -8.717269, 36),
        (testbed.RandomProjection(7, cluster_only_correct_class=True), -8.703173, 35),
        (testbed.RandomProjection(7, normalize=True), -8.324327, None),
        (testbed.KmeansCluster(10), -8.635638, None),
    ],
)
def test_clusters(algorithm, expected, num_clusters):
    weights, probs = algorithm(PROBITS, LABELS, KEY)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(log_sum_prod(weights, probs), expected, rtol=2e-5)
    if num_clusters:
        assert int((weights > 0).sum()) == num_clusters


@pytest.mark.slow
def test_projection_beside_the_exact_value():
    logits = 4 * PROBITS
    metric = testbed.JointLLCalculatorProjection(testbed.RandomProjection(7), 5.0, KEY)
    np.testing.assert_allclose(metric(logits, LABELS), -9.305550, rtol=2e-5)
    exact = metrics.calculate_joint_ll(logits, LABELS)
    np.testing.assert_allclose(exact, -15.327194, rtol=1e-5)


@pytest.mark.slow
def test_one_cluster_a_sample_is_exact():
    probits = PROBITS[:4]
    each = lambda probits, labels, key: (  # noqa: E731
        jnp.full(4, 0.25),
        norm.cdf(jnp.take_along_axis(probits, labels[None], -1)[..., 0]),
    )
    probs = each(probits, LABELS, None)[1]
    expected = jnp.log(probs.prod(1).mean())
    np.testing.assert_allclose(
        log_sum_prod(*each(probits, LABELS, None)), expected, 1e-5
    )


def _config(tau, num_test_seeds=20, num_enn_samples=100):
    prior = testbed.PriorKnowledge(2, 10, tau, 2, 2, temperature=0.1)
    return testbed.ProblemConfig(
        prior, 76, num_test_seeds=num_test_seeds, num_enn_samples=num_enn_samples
    )


def _uniform(x, key):
    return jnp.zeros([len(x), 2])


class _Counted:
    """Linear functions, and on how many rows each has been evaluated."""

    num_rows = 0

    def sample_many(self, x, keys):
        self.num_rows += len(x)
        weights = jax.vmap(lambda key: jax.random.normal(key, [2, 2]))(keys)
        return jnp.asarray(x) @ weights


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.slow
def test_rows_of_many_taus_are_evaluated_once(published):
    stream = testbed.published_stream() if published else contextlib.nullcontext()
    once, plain = _Counted(), _Counted()
    judged = AtManyTaus(once)
    estimator = testbed.CategoricalKLSampledXSampledY(5, 30, KEY)
    other_keys = testbed.CategoricalKLSampledXSampledY(5, 30, jax.random.PRNGKey(4))
    cases = [(1, estimator), (3, estimator), (7, estimator), (8, other_keys)]
    counts = []
    with stream:
        for tau, kl in cases:
            data = testbed.problem_from_config(_config(tau)).data_sampler
            before = once.num_rows
            expected = kl(plain, data).kl_estimate
            np.testing.assert_allclose(kl(judged, data).kl_estimate, expected, 1e-5)
            counts.append(once.num_rows - before)
    # Test batches of the former stream do not begin with the same rows.
    assert counts == ([5, 15, 35, 40] if published else [5, 10, 20, 40])


@pytest.mark.slow
def test_large_tau():
    # At tau above 10 the estimator draws other keys, for its clusters.
    projected = testbed.problem_from_config(_config(100)).evaluate_quality(_uniform)
    np.testing.assert_allclose(projected.kl_estimate, 41.162834, rtol=2e-5)
    exact = testbed.problem_from_config(_config(100), exact=True)
    quality = exact.evaluate_quality(_uniform)
    keys = jax.random.split(jax.random.split(_estimator_key(76))[0], 20)
    _, true_ll = exact.data_sampler.test_batches(keys)
    expected = true_ll.mean() + 100 * np.log(2)
    np.testing.assert_allclose(quality.kl_estimate, expected, rtol=1e-5)


def _estimator_key(seed):
    key = jax.random.PRNGKey(seed)
    for _ in range(3):
        key, subkey = jax.random.split(key)
    return subkey


def _linear(x, key):
    w = 3 * jax.random.normal(key, [2, 2])
    return x @ w


def test_the_estimate_is_that_of_a_plain_loop():
    problem = testbed.problem_from_config(
        _config(3, num_test_seeds=5, num_enn_samples=7)
    )
    kl_key, enn_key = jax.random.split(_estimator_key(76))
    kls = []
    for key in jax.random.split(kl_key, 5):
        (x, y), true_ll = problem.data_sampler.test_data(key)
        probs = [
            np.prod(np.asarray(jax.nn.softmax(_linear(x, z)), float)[range(3), y[:, 0]])
            for z in jax.random.split(enn_key, 7)
        ]
        kls.append(float(true_ll) - np.log(np.mean(probs)))
    quality = problem.evaluate_quality(_linear)
    np.testing.assert_allclose(quality.kl_estimate, np.mean(kls), rtol=1e-5)
    np.testing.assert_allclose(quality.extra["kl_estimate_std"], np.std(kls), rtol=1e-5)
    assert quality.extra["num_distinct_samples"] == 7


@pytest.mark.slow
def test_samplers_that_cannot_be_traced_are_called_once_a_key():
    calls = []

    def sampler(x, key):
        calls.append(x.shape)
        return np.asarray(_linear(np.asarray(x), key))

    problem = testbed.problem_from_config(
        _config(3, num_test_seeds=5, num_enn_samples=7)
    )
    got = problem.evaluate_quality(sampler)
    expected = problem.evaluate_quality(_linear)
    np.testing.assert_allclose(got.kl_estimate, expected.kl_estimate, rtol=1e-5)
    np.testing.assert_allclose(got.extra["test_acc"], expected.extra["test_acc"])
    # Each estimate tries to trace it once, then calls it for 7 and for 100 keys.
    assert len(calls) == 2 + 7 + 100


def test_a_wrong_shape_is_told():
    with pytest.raises(ValueError, match=r"\[batch, num_classes\] for inputs \[4, 2\]"):
        sample_logits(
            lambda x, key: jnp.zeros(len(x)),
            jnp.zeros([4, 2]),
            jax.random.split(KEY, 3),
        )


@pytest.mark.parametrize(
    ("estimates", "mean", "std", "finite"),
    [
        ([1.0, 2.0, np.inf, -1.0], 1.0, np.nan, 0.75),
        ([1.0, 2.0, np.nan, -1.0], np.nan, np.nan, 0.75),
        ([1.0, 2.0, -np.inf], -np.inf, np.nan, 2 / 3),
        ([np.inf, np.inf], np.inf, np.nan, 0.0),
        ([1.0, 3.0], 2.0, 1.0, 1.0),
    ],
)
def test_estimates_that_are_not_finite(estimates, mean, std, finite):
    quality = testbed.parse_kl_estimates(estimates)
    np.testing.assert_array_equal(quality.kl_estimate, mean)
    np.testing.assert_array_equal(quality.extra["kl_estimate_std"], std)
    np.testing.assert_allclose(quality.extra["pct_finite_kl"], finite)
    assert quality.extra["train_acc"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("log_space", "finite"), [(False, 0.0), (True, 1.0)])
def test_sure_and_wrong(log_space, finite):
    def wrong(x, key):
        return 1000 * jax.nn.one_hot(jnp.zeros(len(x), int), 2)

    data = testbed.problem_from_config(
        testbed.ProblemConfig(
            testbed.PriorKnowledge(1, 1, 1, 2, 2, temperature=1.0),
            0,
            logit_ctor=lambda key: (
                lambda x: jnp.stack([x[:, 0] * 0 - 99, x[:, 0] * 0], 1)
            ),
        )
    ).data_sampler
    kl = testbed.CategoricalKLSampledXSampledY(3, 2, KEY, log_space=log_space)
    quality = kl(wrong, data)
    assert quality.extra["pct_finite_kl"] == finite
    np.testing.assert_allclose(quality.kl_estimate, 1000 if log_space else np.inf)


def test_discrete_kl():
    p, q = jnp.array([0.0, 0.25, 0.75]), jnp.array([0.5, 0.25, 0.25])
    expected = 0.75 * np.log(3)
    np.testing.assert_allclose(testbed.compute_discrete_kl(p, q), expected, rtol=1e-6)
