"""Estimates of the KL divergence between the truth and predictions with Gaussian noise.

As `enn.testbed.estimators` for classes: log P − log Q of a test batch, in nats.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, metrics
from enn.testbed.base import Array, ENNQuality, EpistemicSampler
from enn.testbed.estimators import parse_kl_estimates, sample_logits
from enn.testbed.generative import GenerativeDataSampler


def gaussian_log_likelihood(err: Array, cov: Array) -> jax.Array:
    """Returns log N(err; 0, cov) of every column, in nats.

    -½ (errᵀ cov⁻¹ err + log det cov + tau log 2π).

    Args:
      err: columns `[tau, num_columns]`.
      cov: positive definite covariance `[tau, tau]`.

    Returns:
      `[num_columns]`.

    >>> import jax.numpy as jnp
    >>> from enn import testbed
    >>> ll = testbed.gaussian_log_likelihood(jnp.zeros([1, 1]), 4 * jnp.eye(1))
    >>> round(float(ll[0]), 4)  # -½ log(2π · 4)
    -1.6121
    """
    factor = jnp.linalg.cholesky(cov)
    whitened = jax.scipy.linalg.solve_triangular(factor, err, lower=True)
    log_det = 2 * jnp.log(jnp.diag(factor)).sum()
    constant = len(err) * jnp.log(2 * jnp.pi)
    return -0.5 * (constant + log_det + jnp.square(whitened).sum(0))


def optimized_gaussian_ll(err: Array) -> jax.Array:
    """Returns `gaussian_log_likelihood` at the mean square, which fits `err` best.

    >>> import jax.numpy as jnp
    >>> from enn import testbed
    >>> round(float(testbed.optimized_gaussian_ll(jnp.array([[2.0]]))[0]), 4)  # At 2²
    -2.1121

    Args:
      err: `[tau, 1]`.
    """
    return gaussian_log_likelihood(err, jnp.square(err).mean() * jnp.eye(len(err)))


def gaussian_quality(kls: Array) -> ENNQuality:
    """Returns `parse_kl_estimates` without the figures of classification."""
    quality = parse_kl_estimates(kls)
    extra = {k: v for k, v in (quality.extra or {}).items() if v is not None}
    return ENNQuality(quality.kl_estimate, extra)


def _estimate(kl_fn: Callable[[chex.PRNGKey], Array], keys: chex.PRNGKey) -> ENNQuality:
    try:
        kls = jax.jit(lambda keys: jax.lax.map(kl_fn, keys))(keys)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        kls = np.stack([kl_fn(key) for key in keys])
    return gaussian_quality(kls)


class GaussianSampleKL:
    """The likelihood of each test batch, averaged over samples with Gaussian noise.

    log Q = log (1/S) Σₛ Πₜ N(yₜ; fₛ(xₜ), σ²). One key draws a test batch and, anew for
    every batch, the samples.
    """

    def __init__(
        self,
        num_test_seeds: int,
        num_enn_samples: int,
        enn_sigma: float,
        key: chex.PRNGKey,
    ):
        """Fixes test batches and samples by `key`.

        Args:
          num_test_seeds: number of test batches.
          num_enn_samples: number of functions S drawn for each.
          enn_sigma: σ, standard deviation of the noise.
          key: draws both.
        """
        self._num_samples, self._sigma = num_enn_samples, enn_sigma
        self._keys = jax.random.split(key, num_test_seeds)

    def __call__(
        self, enn_sampler: EpistemicSampler, data_sampler: GenerativeDataSampler
    ) -> ENNQuality:
        """Returns the estimate."""

        def kl(key: chex.PRNGKey) -> Array:
            (x, y), true_ll = data_sampler.test_data(key)
            keys = jax.random.split(key, self._num_samples)
            samples = sample_logits(enn_sampler, x, keys)
            return true_ll - metrics.calculate_gaussian_joint_ll(
                samples, y, self._sigma
            )

        return _estimate(kl, self._keys)


class GaussianSmoothedSampleKL:
    """The likelihood of each test batch under one Gaussian, fitted to the samples.

    Q = N(mean of the samples, their covariance + (σ² + ridge) I): where `tau` is large,
    it needs fewer samples than `GaussianSampleKL`.
    """

    def __init__(
        self,
        num_test_seeds: int,
        num_enn_samples: int,
        enn_sigma: float,
        key: chex.PRNGKey,
        cov_ridge: float = 1e-6,
    ):
        """Fixes test batches and samples by `key`.

        Args:
          num_test_seeds: number of test batches.
          num_enn_samples: number of functions drawn for each.
          enn_sigma: σ, standard deviation of the noise.
          key: draws both.
          cov_ridge: added to the variances of the samples.
        """
        self._num_samples, self._sigma, self._ridge = (
            num_enn_samples,
            enn_sigma,
            cov_ridge,
        )
        self._keys = jax.random.split(key, num_test_seeds)

    def __call__(
        self, enn_sampler: EpistemicSampler, data_sampler: GenerativeDataSampler
    ) -> ENNQuality:
        """Returns the estimate."""

        def kl(key: chex.PRNGKey) -> Array:
            data_key, enn_key = jax.random.split(key)
            (x, y), true_ll = data_sampler.test_data(data_key)
            keys = jax.random.split(enn_key, self._num_samples)
            samples = sample_logits(enn_sampler, x, keys)
            _checks.shape("A sample", samples[0], (len(x), 1), "[batch, 1]")
            mean = samples.mean(0)
            centred = (samples - mean[None])[..., 0]
            cov = centred.T @ centred / self._num_samples
            cov += (self._ridge + self._sigma**2) * jnp.eye(len(x))
            return true_ll - gaussian_log_likelihood(y - mean, cov)[0]

        return _estimate(kl, self._keys)
