import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from enn.testbed import base, generative
from enn.testbed import gaussian_estimators as estimators

KEY = jax.random.PRNGKey(0)


def test_gaussian_log_likelihoods():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 5))
    err = rng.normal(size=(3, 2)).astype(np.float32)
    expected = stats.multivariate_normal(np.zeros(3), a @ a.T).logpdf(err.T)
    got = estimators.gaussian_log_likelihood(err, jnp.asarray(a @ a.T))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    err = err[:, :1]
    fitted = stats.norm(scale=np.sqrt(np.square(err).mean())).logpdf(err).sum()
    np.testing.assert_allclose(
        estimators.optimized_gaussian_ll(err), [fitted], rtol=1e-5
    )


class FixedData(generative.GenerativeDataSampler):
    """Two test rows with targets 1 and 3, whose likelihood is 0."""

    train_data = base.Data(jnp.zeros([1, 1]), jnp.zeros([1, 1]))

    def test_data(self, key):
        return base.Data(jnp.zeros([2, 1]), jnp.array([[1.0], [3.0]])), jnp.zeros([])


def test_sample_kl_of_one_function():
    kl = estimators.GaussianSampleKL(3, 4, 2.0, KEY)(
        lambda x, key: jnp.zeros([2, 1]), FixedData()
    )
    expected = -stats.norm(scale=2).logpdf([1, 3]).sum()
    assert kl.kl_estimate == pytest.approx(expected, rel=1e-5)
    assert kl.extra == {"kl_estimate_std": 0, "pct_finite_kl": 1}


def test_sample_kl_draws_data_and_functions_from_one_key():
    kl_fn = estimators.GaussianSampleKL(2, 3, 2.0, KEY)
    kl = kl_fn(lambda x, key: jax.random.normal(key, [2, 1]), FixedData())
    losses = []
    for key in jax.random.split(KEY, 2):
        functions = [jax.random.normal(k, [2]) for k in jax.random.split(key, 3)]
        lls = [stats.norm(f, 2).logpdf([1, 3]).sum() for f in functions]
        losses.append(-np.log(np.mean(np.exp(lls))))
    assert kl.kl_estimate == pytest.approx(np.mean(losses), rel=1e-5)


def test_smoothed_kl_fits_a_gaussian():
    kl_fn = estimators.GaussianSmoothedSampleKL(1, 50, 0.5, KEY)
    kl = kl_fn(lambda x, key: jax.random.normal(key, [2, 1]), FixedData())
    enn_key = jax.random.split(jax.random.split(KEY, 1)[0])[1]
    samples = [jax.random.normal(k, [2]) for k in jax.random.split(enn_key, 50)]
    cov = np.cov(np.array(samples), rowvar=False, bias=True) + (0.25 + 1e-6) * np.eye(2)
    expected = -stats.multivariate_normal(np.mean(samples, 0), cov).logpdf([1, 3])
    assert kl.kl_estimate == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [estimators.GaussianSampleKL, estimators.GaussianSmoothedSampleKL]
)
def test_samplers_outside_jax_are_called_one_key_at_a_time(make):
    def sample(x, key):
        return jax.random.normal(key, [2, 1])

    kl_fn = make(2, 3, 2.0, KEY)
    outside = kl_fn(lambda x, key: np.asarray(sample(np.array(x), key)), FixedData())
    inside = kl_fn(sample, FixedData())
    assert outside.kl_estimate == pytest.approx(inside.kl_estimate, rel=1e-5)
    with pytest.raises(ValueError, match="got"):
        kl_fn(lambda x, key: jnp.zeros([2, 3]), FixedData())
