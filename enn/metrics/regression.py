"""Metrics of regression: samples of the network at S indices against targets.

All take samples `[num_enn_samples, batch, 1]` and targets `[batch, 1]`, and are means
over rows or groups of rows: `make_average_aggregator(metric, weight_by_size=True)`
streams them.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp

from enn import _checks, _sharding
from enn.metrics.base import (
    ArrayMetric,
    at_least_float32,
    average_sampled_log_likelihood,
    pairwise_mean,
    pairwise_sum,
    root_mean_square,
)
from enn.metrics.joint import average_joint_nll
from enn.metrics.likelihood import check_not_empty


@_sharding.allow_explicit_axes
@functools.partial(jax.jit, static_argnames="fair")
def calculate_crps(
    samples: chex.Array, targets: chex.Array, fair: bool = False
) -> jax.Array:
    """Continuous ranked probability score, mean over the batch, in units of the target.

    The energy form, E|X − y| − ½ E|X − X′| for X and X′ independent among the samples:
    exact for their empirical distribution, and |x − y| for one sample (Gneiting and
    Raftery, 2007, eq. 21, https://doi.org/10.1198/016214506000001437).

    Args:
      samples: `[num_enn_samples, batch, 1]`.
      targets: `[batch, 1]`.
      fair: whether X and X′ are two different samples. Then the expected score does
        not depend on the number of samples, and is that of the distribution they are
        drawn from (Ferro, 2014, https://doi.org/10.1002/qj.2270).

    Returns:
      A scalar; a fair one may be negative.

    Raises:
      ValueError: if a shape is wrong, or there is only one sample for a fair score.

    >>> import numpy as np
    >>> from enn import metrics
    >>> samples, targets = np.array([[[1.0]], [[3.0]]]), np.array([[2.0]])
    >>> float(metrics.calculate_crps(samples, targets))  # 1 - ½ · (0 + 2 + 2 + 0) / 4
    0.5
    >>> float(metrics.calculate_crps(samples, targets, fair=True))  # 1 - ½ · 2
    0.0
    """
    samples, targets = _check_shapes(samples, targets)
    num_samples = len(samples)
    if fair and num_samples < 2:
        raise ValueError(f"a fair CRPS needs at least 2 samples, got {num_samples}.")
    # For sorted errors, ½ E|X - X'| = Σᵢ (2i − S − 1) xᵢ / S²: no S² differences. The
    # factors add up to 0, so that errors may be taken from the one in the middle.
    errors = jnp.sort(samples - targets[None], axis=0)
    gaps = errors - errors[num_samples // 2][None]
    ranks = jnp.arange(1 - num_samples, num_samples, 2, dtype=errors.dtype)
    spread = pairwise_mean(ranks[:, None, None] * gaps)
    spread /= num_samples - 1 if fair else num_samples
    return pairwise_mean((pairwise_mean(jnp.abs(errors)) - spread)[:, 0])


def make_gaussian_nll_calculator(noise_std: float = 0.0) -> ArrayMetric:
    """Returns the negative log-likelihood of a Gaussian with the samples' moments.

    −(1/B) Σ_b log N(y_b; meanₛ f_sb, varₛ f_sb + σ²), with the population variance, in
    nats.

    The Gaussian that stands for an ensemble: Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474, section 2.4.

    >>> import numpy as np
    >>> from enn import metrics
    >>> nll = metrics.make_gaussian_nll_calculator()
    >>> samples = np.array([[[1.0]], [[3.0]]])  # Mean 2, variance 1
    >>> round(float(nll(samples, np.array([[2.0]]))), 3)  # ½ log 2π
    0.919

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

    @_sharding.allow_explicit_axes
    @jax.jit
    def calculator(samples: chex.Array, targets: chex.Array) -> jax.Array:
        samples, targets = _check_shapes(samples, targets)
        mean = pairwise_mean(samples)
        std = jnp.hypot(root_mean_square(samples - mean[None]), noise_std)
        return -pairwise_mean(_log_normal((targets - mean) / std, std)[:, 0])

    return calculator


def calculate_gaussian_joint_ll(
    samples: chex.Array, targets: chex.Array, noise_std: float
) -> jax.Array:
    """Joint log-likelihood of a whole batch under Gaussian noise, in nats.

    log (1/S) Σₛ Πₜ N(yₜ; f_st, σ²): a sum over the τ rows, not divided by τ.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924.

    >>> import numpy as np
    >>> from enn import metrics
    >>> agree, differ = np.ones([1, 2, 1]), np.array([[[0.0]] * 2, [[2.0]] * 2])
    >>> for samples in agree, differ:
    ...     ll = metrics.calculate_gaussian_joint_ll(samples, np.ones([2, 1]), 1.0)
    ...     round(float(ll), 3)
    -1.838
    -2.838

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


@_sharding.allow_explicit_axes
@jax.jit
def _joint_ll(
    samples: chex.Array, targets: chex.Array, noise_std: chex.Numeric
) -> jax.Array:
    log_likelihoods = _log_likelihoods(samples, targets, noise_std)
    return average_sampled_log_likelihood(pairwise_sum(log_likelihoods, 1))


def make_gaussian_nll_joint_calculator(noise_std: float, tau: int = 10) -> ArrayMetric:
    """Returns the joint negative log-likelihood of `tau` targets at a time, in nats.

    The mean over consecutive groups of `tau` rows of `-calculate_gaussian_joint_ll`;
    not divided by `tau`. Rows that remain are dropped, so a mean over batches weighted
    by size is that of one big batch where `tau` divides each of them. With `tau=1`, it
    is the marginal negative log-likelihood.

    >>> import numpy as np
    >>> from enn import metrics
    >>> joint = metrics.make_gaussian_nll_joint_calculator(noise_std=1.0, tau=2)
    >>> samples, targets = np.zeros([10, 6, 1]), np.zeros([6, 1])
    >>> round(float(joint(samples, targets)), 3)  # Two rows at a time: log 2π
    1.838

    Args:
      noise_std: σ, standard deviation of the noise, in units of the target.
      tau: number of rows predicted jointly.

    Returns:
      A calculator `(samples [num_enn_samples, batch, 1], targets [batch, 1])`; raises
      ValueError for a batch of fewer than `tau` rows.

    Raises:
      ValueError: unless `noise_std` > 0 and `tau` is an integer >= 1.
    """
    _checks.positive_int("tau", tau)
    _check_noise(noise_std)

    @_sharding.allow_explicit_axes
    @jax.jit
    def calculator(samples: chex.Array, targets: chex.Array) -> jax.Array:
        return average_joint_nll(_log_likelihoods(samples, targets, noise_std), tau)

    return calculator


def _log_likelihoods(
    samples: chex.Array, targets: chex.Array, noise_std: chex.Numeric
) -> jax.Array:
    samples, targets = _check_shapes(samples, targets)
    return _log_normal((targets[None] - samples) / noise_std, noise_std)[..., 0]


def _log_normal(distance: jax.Array, scale: chex.Numeric) -> jax.Array:
    """Log-density of a Gaussian at `distance` standard deviations from its mean."""
    return -0.5 * distance**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


def _check_noise(noise_std: float) -> None:
    if _checks.is_concrete(noise_std) and not noise_std > 0:
        raise ValueError(f"noise_std must be > 0, got {noise_std!r}.")


def _check_shapes(
    samples: chex.Array, targets: chex.Array
) -> tuple[jax.Array, jax.Array]:
    axes = "[num_enn_samples, batch, 1]"
    _checks.shape("samples", samples, (None, None, 1), axes)
    check_not_empty("samples", samples)
    targets = _checks.as_column("targets", _checks.as_array(targets))
    _checks.shape("targets", targets, (samples.shape[1], 1), "[batch, 1]")
    return at_least_float32(samples), at_least_float32(targets)
