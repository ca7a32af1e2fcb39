"""Metrics of regression: samples of the network at S indices against targets.

All take samples `[num_enn_samples, batch, 1]` and targets `[batch, 1]`, and are means
over rows or groups of rows: `make_average_aggregator(metric, weight_by_size=True)`
streams them.
"""

import chex
import jax
import jax.numpy as jnp

from enn import _checks
from enn.metrics.base import MetricCalculator, average_sampled_log_likelihood
from enn.metrics.joint import average_joint_nll
from enn.metrics.likelihood import check_not_empty


@jax.jit
def calculate_crps(samples: chex.Array, targets: chex.Array) -> jax.Array:
    """Continuous ranked probability score, mean over the batch, in units of the target.

    The energy form, E|X − y| − ½ E|X − X′| for X and X′ independent among the samples:
    exact for their empirical distribution, and |x − y| for one sample (Gneiting and
    Raftery, 2007, eq. 21, https://doi.org/10.1198/016214506000001437).

    Args:
      samples: `[num_enn_samples, batch, 1]`.
      targets: `[batch, 1]`.

    Returns:
      A scalar.

    Raises:
      ValueError: if a shape is wrong.
    """
    samples, targets = _check_shapes(samples, targets)
    # For sorted errors, ½ E|X − X'| = Σᵢ (2i − S − 1) xᵢ / S²: no S² differences.
    errors = jnp.sort(samples - targets[None], axis=0)
    num_samples = len(samples)
    ranks = jnp.arange(1 - num_samples, num_samples, 2, dtype=errors.dtype)
    spread = jnp.mean(ranks[:, None, None] * errors, axis=0) / num_samples
    return jnp.mean(jnp.abs(errors).mean(axis=0) - spread)


def make_gaussian_nll_calculator(noise_std: float = 0.0) -> MetricCalculator:
    """Returns the negative log-likelihood of a Gaussian with the samples' moments.

    −(1/B) Σ_b log N(y_b; meanₛ f_sb, varₛ f_sb + σ²), with the population variance, in
    nats.

    Args:
      noise_std: σ, standard deviation of observation noise that is not in the samples,
        in units of the target. If it is 0, the samples of a row must not all agree.

    Returns:
      A calculator `(samples [num_enn_samples, batch, 1], targets [batch, 1])`.

    Raises:
      ValueError: if `noise_std` is negative.
    """
    if not noise_std >= 0:
        raise ValueError(f"noise_std must be >= 0, got {noise_std!r}.")

    @jax.jit
    def calculator(samples: chex.Array, targets: chex.Array) -> jax.Array:
        samples, targets = _check_shapes(samples, targets)
        std = jnp.sqrt(samples.var(axis=0) + noise_std**2)
        return -jax.scipy.stats.norm.logpdf(targets, samples.mean(axis=0), std).mean()

    return calculator


def calculate_gaussian_joint_ll(
    samples: chex.Array, targets: chex.Array, noise_std: float
) -> jax.Array:
    """Joint log-likelihood of a whole batch under Gaussian noise, in nats.

    log (1/S) Σₛ Πₜ N(yₜ; f_st, σ²): a sum over the τ rows, not divided by τ.

    Args:
      samples: `[num_enn_samples, tau, 1]`.
      targets: `[tau, 1]`.
      noise_std: σ, standard deviation of the noise, in units of the target.

    Returns:
      A scalar.

    Raises:
      ValueError: if a shape is wrong, or `noise_std` is not positive.
    """
    _check_noise(noise_std)
    return _joint_ll(samples, targets, noise_std)


@jax.jit
def _joint_ll(
    samples: chex.Array, targets: chex.Array, noise_std: chex.Numeric
) -> jax.Array:
    log_likelihoods = _log_likelihoods(samples, targets, noise_std)
    return average_sampled_log_likelihood(log_likelihoods.sum(axis=1))


def make_gaussian_nll_joint_calculator(
    noise_std: float, tau: int = 10
) -> MetricCalculator:
    """Returns the joint negative log-likelihood of `tau` targets at a time, in nats.

    The mean over consecutive groups of `tau` rows of `-calculate_gaussian_joint_ll`;
    not divided by `tau`. Rows that remain are dropped, so a mean over batches weighted
    by size is that of one big batch where `tau` divides each of them. With `tau=1`, it
    is the marginal negative log-likelihood.

    Args:
      noise_std: σ, standard deviation of the noise, in units of the target.
      tau: number of rows predicted jointly.

    Returns:
      A calculator `(samples [num_enn_samples, batch, 1], targets [batch, 1])`; raises
      ValueError for a batch of fewer than `tau` rows.

    Raises:
      ValueError: if `noise_std` is not positive, or `tau` is no integer >= 1.
    """
    _checks.positive_int("tau", tau)
    _check_noise(noise_std)

    @jax.jit
    def calculator(samples: chex.Array, targets: chex.Array) -> jax.Array:
        return average_joint_nll(_log_likelihoods(samples, targets, noise_std), tau)

    return calculator


def _log_likelihoods(
    samples: chex.Array, targets: chex.Array, noise_std: chex.Numeric
) -> jax.Array:
    samples, targets = _check_shapes(samples, targets)
    return jax.scipy.stats.norm.logpdf(targets[None], samples, noise_std)[..., 0]


def _check_noise(noise_std: float) -> None:
    if _checks.is_concrete(noise_std) and not noise_std > 0:
        raise ValueError(f"noise_std must be > 0, got {noise_std!r}.")


def _check_shapes(
    samples: chex.Array, targets: chex.Array
) -> tuple[jax.Array, jax.Array]:
    axes = "[num_enn_samples, batch, 1]"
    _checks.shape("samples", samples, (None, None, 1), axes)
    check_not_empty("samples", samples)
    _checks.shape("targets", targets, (samples.shape[1], 1), "[batch, 1]")
    return jnp.asarray(samples), jnp.asarray(targets)
