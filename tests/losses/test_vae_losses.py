import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from enn import losses, networks
from tests.losses import cases
from tests.support import golden

X = np.array([[1.0, 0.0], [1.0, 1.0]])
OUT = np.array([[2.0, -1.0], [0.0, 3.0]])


def test_golden_vae_parts():
    @jax.jit
    def parts(x, mean, log_var):
        return {
            "binary": losses.binary_log_likelihood(x, mean),
            "gaussian": losses.gaussian_log_likelihood(x, mean, log_var),
            "kl": losses.latent_kl_divergence(mean, log_var),
        }

    noise, mean, log_var = (golden.normal(6, 4, seed=seed) for seed in (5, 6, 7))
    x = (np.asarray(noise) > 0).astype(np.float32)
    golden.assert_matches("loss_vae_parts", parts(x, mean, log_var))


def test_values_stated_for_the_original():
    binary = losses.binary_log_likelihood(X, OUT)
    np.testing.assert_allclose(binary, -0.5909622, rtol=1e-6)
    gaussian = losses.gaussian_log_likelihood(X, OUT, 0.1 * OUT)
    np.testing.assert_allclose(gaussian, -3.4096706, rtol=1e-6)
    kl = losses.latent_kl_divergence(X, OUT)
    np.testing.assert_allclose(kl, 5.960618, rtol=1e-6)


def test_likelihoods_equal_scipy():
    binary = scipy.stats.bernoulli.logpmf(X, 1 / (1 + np.exp(-OUT))).sum(1).mean()
    np.testing.assert_allclose(losses.binary_log_likelihood(X, OUT), binary, rtol=1e-6)
    gaussian = scipy.stats.norm.logpdf(X, 1.5, np.exp(OUT / 2)).sum(1).mean()
    got = losses.gaussian_log_likelihood(X, np.full_like(X, 1.5), OUT)
    np.testing.assert_allclose(got, gaussian, rtol=1e-6)


def test_divergence_equals_its_integral():
    mean, log_var = 0.7, -0.4
    q, p = scipy.stats.norm(mean, np.exp(log_var / 2)), scipy.stats.norm()
    wanted, _ = scipy.integrate.quad(
        lambda u: q.pdf(u) * (q.logpdf(u) - p.logpdf(u)), -12, 12
    )
    got = losses.latent_kl_divergence(np.full([3, 1], mean), np.full([3, 1], log_var))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_likelihood_of_confident_logits_is_finite():
    logits = np.array([[1000.0, -1000.0]])
    assert losses.binary_log_likelihood(X[:1], logits) == 0
    assert losses.binary_log_likelihood(1 - X[:1], logits) == -2000


def test_functions_of_the_network_output_read_its_extras():
    extra = {"out_mean": OUT, "out_log_var": 0.1 * OUT}
    extra |= {"latent_mean": X, "latent_log_var": OUT}
    out, batch = networks.OutputWithPrior(OUT, extra=extra), cases.batch_of(X)
    batch = batch.replace(x=X)
    assert losses.get_log_likelihood_fn(True)(
        out, batch
    ) == losses.binary_log_likelihood(X, OUT)
    assert losses.get_log_likelihood_fn(False)(
        out, batch
    ) == losses.gaussian_log_likelihood(X, OUT, 0.1 * OUT)
    assert losses.latent_kl_fn(out) == losses.latent_kl_divergence(X, OUT)


@pytest.mark.parametrize("bernoulli_decoder", [True, False])
def test_missing_extras_are_named(bernoulli_decoder):
    likelihood = losses.get_log_likelihood_fn(bernoulli_decoder)
    out = networks.OutputWithPrior(OUT, extra={"out_mean": OUT})
    with pytest.raises(ValueError, match=r"'out_log_var'.*\['out_mean'\]"):
        likelihood(out, cases.batch_of(X))
    with pytest.raises(ValueError, match=r"OutputWithPrior.*'latent_mean'.*got a "):
        losses.latent_kl_fn(OUT)


@pytest.mark.parametrize(
    ("function", "num_arguments"),
    [
        (losses.binary_log_likelihood, 2),
        (losses.gaussian_log_likelihood, 3),
        (losses.latent_kl_divergence, 2),
    ],
)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (([2, 2], [2, 1]), r"\[2, 2\] of the first argument, got \[2, 1\]"),
        (([2], [2]), r"must have shape \[batch, dim\], got \[2\]"),
        (([2, 2, 2], [2, 2, 2]), r"must have shape \[batch, dim\]"),
    ],
)
def test_inputs_are_matrices_of_equal_shape(function, num_arguments, shapes, message):
    arrays = [np.zeros(shapes[0])] * (num_arguments - 1) + [np.zeros(shapes[1])]
    with pytest.raises(ValueError, match=message):
        function(*arrays)


def test_likelihoods_keep_small_terms():
    # x·o - softplus(o) was 0 for a sure and right decoder, (1e-25)² underflowed.
    sure = losses.binary_log_likelihood(np.ones([1, 1]), np.array([[30.0]]))
    np.testing.assert_allclose(sure, -np.exp(-30), rtol=1e-5)
    got = losses.gaussian_log_likelihood(
        np.array([[2e-25]]), np.zeros([1, 1]), np.array([[2 * np.log(1e-25)]])
    )
    wanted = scipy.stats.norm.logpdf(2e-25, 0, 1e-25)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    kl = losses.latent_kl_divergence(np.zeros([1, 1]), np.array([[1e-3]]))
    np.testing.assert_allclose(kl, 0.5 * (np.expm1(1e-3) - 1e-3), rtol=1e-3)
