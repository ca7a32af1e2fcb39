"""Metrics of regression with a likelihood: a mixture of Gaussians for each target.

At each epistemic index a network gives the mean μₛ and the standard deviation σₛ of a
target. Its prediction is the mixture (1/S) Σₛ N(μₛ, σₛ²), in which the σₛ are the
aleatoric uncertainty, and what the μₛ differ the epistemic one.

All take outputs `[num_enn_samples, batch, ...]`, which `parse` turns into μ and σ, and
targets `[batch, num_outputs]`, or `[batch]` for one output. Where nothing else is said,
they are means over rows: `make_average_aggregator(metric, weight_by_size=True)` streams
them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _sharding, base
from enn.metrics.base import (
    AggregateMetricCalculator,
    ArrayMetric,
    at_least_float32,
    make_sum_aggregator,
    pairwise_mean,
    pairwise_sum,
)
from enn.metrics.joint import average_joint_nll
from enn.metrics.likelihood import check_not_empty

ParseFn = Callable[[base.AnyArray], tuple[chex.Array, chex.Array]]
"""Turns outputs `[num_enn_samples, batch, ...]` into means and standard deviations,

both `[num_enn_samples, batch, num_outputs]`.
"""


class CalibrationCurve(NamedTuple):
    """How often targets lie below the quantiles that a network predicts.

    Attributes:
      level: level of the quantile, from 0 to 1, `[num_bins + 1]`.
      observed: fraction of targets below it, `level` if calibrated, `[num_bins + 1]`.
    """

    level: np.ndarray
    observed: np.ndarray


def split_mean_and_std(outputs: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first and second half of the outputs: means, standard deviations.

    >>> import numpy as np
    >>> from enn import metrics
    >>> mean, std = metrics.split_mean_and_std(np.array([[1.0, 2.0, 0.5, 0.25]]))
    >>> print(mean, std)
    [[1. 2.]] [[0.5  0.25]]

    Args:
      outputs: `[..., 2 * num_outputs]`; the second half must be positive.

    Returns:
      Two arrays `[..., num_outputs]`.

    Raises:
      ValueError: if the number of outputs is odd.
    """
    if np.shape(outputs)[-1] % 2:
        raise ValueError(
            "outputs must have an even last axis, means and then standard deviations, "
            f"got shape {list(np.shape(outputs))}."
        )
    mean, std = jnp.split(jnp.asarray(outputs), 2, axis=-1)
    return mean, std


def make_constant_std(noise_std: chex.Numeric) -> ParseFn:
    """Returns a `parse` for networks that give the mean alone.

    Args:
      noise_std: standard deviation of the noise, in units of the target; a scalar, or
        one for each output.

    >>> import numpy as np
    >>> from enn import metrics
    >>> parse = metrics.make_constant_std(0.5)
    >>> mean, std = parse(np.zeros([10, 4, 1]))
    >>> std.shape, float(std[0, 0, 0])
    ((10, 4, 1), 0.5)
    """

    def parse(outputs: chex.Array) -> tuple[chex.Array, chex.Array]:
        outputs = at_least_float32(outputs)
        std = jnp.broadcast_to(jnp.asarray(noise_std), outputs.shape[-1:])
        return outputs, jnp.zeros_like(outputs) + std[None, None]

    return parse


def make_mixture_nll_calculator(
    parse: ParseFn = split_mean_and_std,
) -> ArrayMetric:
    """Returns the marginal negative log-likelihood of the mixture, in nats.

    −(1/B) Σ_b log (1/S) Σₛ Πₖ N(y_bk; μ_sbk, σ_sbk²), over outputs k of a row b.

    Mixtures of Gaussians: Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474, section 2.4.

    Args:
      parse: turns outputs into means and standard deviations.

    >>> import numpy as np
    >>> from enn import metrics
    >>> metric = metrics.make_mixture_nll_calculator()
    >>> outputs = np.array([[[0.0, 1.0]]])  # N(0, 1) at its mean: ½ log 2π
    >>> round(float(metric(outputs, np.array([[0.0]]))), 4)
    0.9189
    """
    return make_mixture_nll_joint_calculator(1, parse)


def make_mixture_nll_joint_calculator(
    tau: int = 10, parse: ParseFn = split_mean_and_std
) -> ArrayMetric:
    """Returns the joint negative log-likelihood of `tau` rows at a time, in nats.

    The mean over consecutive groups of `tau` rows of −log (1/S) Σₛ Πₜₖ N(y_tk; μ_stk,
    σ_stk²); not divided by `tau`. Rows that remain are dropped (as for
    `make_nll_joint_calculator`).

    Osband et al., 2021, https://arxiv.org/abs/2107.08924.

    >>> import numpy as np
    >>> from enn import metrics
    >>> joint = metrics.make_mixture_nll_joint_calculator(tau=2)
    >>> outputs = np.array([[[0.0, 1.0]] * 2])  # N(0, 1) in two rows.
    >>> round(float(joint(outputs, np.zeros([2, 1]))), 3)  # log 2π
    1.838

    Args:
      tau: number of rows predicted jointly.
      parse: turns outputs into means and standard deviations.

    Raises:
      ValueError: unless `tau` is an integer >= 1.
    """
    _checks.positive_int("tau", tau)

    @_sharding.allow_explicit_axes
    @jax.jit
    def calculator(outputs: chex.Array, targets: chex.Array) -> jax.Array:
        mean, std = _parsed(parse, outputs)
        distance = _errors(targets, mean) / std
        densities = -0.5 * distance**2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
        return average_joint_nll(pairwise_sum(densities, 2), tau)

    return calculator


def make_mixture_crps_calculator(
    parse: ParseFn = split_mean_and_std,
) -> ArrayMetric:
    """Returns the continuous ranked probability score of the mixture.

    Mean over rows and outputs, in units of the target. In closed form, with
    A(μ, σ) = μ (2 Φ(μ/σ) − 1) + 2 σ φ(μ/σ), it is (1/S) Σₛ A(y − μₛ, σₛ) −
    (1/2S²) Σₛᵣ A(μₛ − μᵣ, √(σₛ² + σᵣ²)) (Grimit et al., 2006,
    https://doi.org/10.1256/qj.05.235). Takes memory for S² numbers a target.

    >>> import numpy as np
    >>> from enn import metrics
    >>> crps = metrics.make_mixture_crps_calculator()
    >>> outputs = np.array([[[0.0, 1.0]]])  # N(0, 1)
    >>> round(float(crps(outputs, np.array([[0.0]]))), 3)  # (√2 - 1) / √π
    0.234

    Args:
      parse: turns outputs into means and standard deviations.
    """

    @_sharding.allow_explicit_axes
    @jax.jit
    def calculator(outputs: chex.Array, targets: chex.Array) -> jax.Array:
        mean, std = _parsed(parse, outputs)
        errors = pairwise_mean(_mean_distance(_errors(targets, mean), std))
        stds = jnp.hypot(std[:, None], std[None])
        between = _mean_distance(mean[:, None] - mean[None], stds)
        spread = pairwise_mean(pairwise_mean(between))
        return pairwise_mean(jnp.ravel(errors - spread / 2))

    return calculator


def _mean_distance(mean: jax.Array, std: jax.Array) -> jax.Array:
    """E|X| for X ~ N(mean, std²)."""
    ratio = mean / std
    density = jnp.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    return mean * jax.lax.erf(ratio / math.sqrt(2)) + 2 * std * density


def calculate_mixture_cdf(
    outputs: chex.Array, targets: chex.Array, parse: ParseFn = split_mean_and_std
) -> jax.Array:
    """Distribution function of the mixture at the targets, (1/S) Σₛ Φ((y − μₛ)/σₛ).

    Also called the probability integral transform: uniform in [0, 1] over rows if the
    predictions are calibrated.

    Gneiting et al., 2007, https://doi.org/10.1111/j.1467-9868.2007.00587.x.

    >>> import numpy as np
    >>> from enn import metrics
    >>> outputs = np.array([[[0.0, 1.0]], [[2.0, 1.0]]])  # ½ N(0, 1) + ½ N(2, 1)
    >>> print(metrics.calculate_mixture_cdf(outputs, np.array([[1.0]])))
    [[0.5]]

    Args:
      outputs: `[num_enn_samples, batch, ...]`.
      targets: `[batch, num_outputs]`.
      parse: turns outputs into means and standard deviations.

    Returns:
      `[batch, num_outputs]`.

    Raises:
      ValueError: if a shape is wrong.
    """
    return _cdf(outputs, targets, parse)


@_sharding.allow_explicit_axes
@functools.partial(jax.jit, static_argnames="parse")
def _cdf(outputs: chex.Array, targets: chex.Array, parse: ParseFn) -> jax.Array:
    mean, std = _parsed(parse, outputs)
    return pairwise_mean(jax.scipy.special.ndtr(_errors(targets, mean) / std))


def calculate_mixture_quantiles(
    outputs: chex.Array, levels: chex.Array, parse: ParseFn = split_mean_and_std
) -> jax.Array:
    """Quantiles of the mixture.

    The y with (1/S) Σₛ Φ((y − μₛ)/σₛ) = level.

    Args:
      outputs: `[num_enn_samples, batch, ...]`.
      levels: levels in (0, 1), `[num_levels]`.
      parse: turns outputs into means and standard deviations.

    Returns:
      `[num_levels, batch, num_outputs]`, in units of the target.

    Raises:
      ValueError: if a level is not in (0, 1), or a shape is wrong.

    >>> import numpy as np
    >>> from enn import metrics
    >>> outputs = np.array([[[3.0, 2.0]]])  # N(3, 4)
    >>> quantiles = metrics.calculate_mixture_quantiles(outputs, np.array([0.5, 0.975]))
    >>> [round(float(quantile), 3) for quantile in quantiles.ravel()]
    [3.0, 6.92]
    """
    _checks.shape("levels", levels, (None,), "[num_levels]")
    if _checks.is_concrete(levels):
        for level in np.ravel(levels):
            _check_level("levels", level)
    return _quantiles(outputs, levels, parse)


@_sharding.allow_explicit_axes
@functools.partial(jax.jit, static_argnames="parse")
def _quantiles(outputs: chex.Array, levels: chex.Array, parse: ParseFn) -> jax.Array:
    mean, std = _parsed(parse, outputs)
    levels = at_least_float32(levels)[:, None, None]
    # One of the mixture lies between those of its parts, where bisection finds it.
    deviates = jax.scipy.special.ndtri(levels)[None]
    parts = mean[:, None] + std[:, None] * deviates
    num_halvings = jnp.finfo(parts.dtype).nmant + 10

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        low, high = ends
        middle = low + (high - low) / 2
        cdf = jax.scipy.special.ndtr((middle[None] - mean[:, None]) / std[:, None])
        is_below = pairwise_mean(cdf) < levels
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    ends = parts.min(axis=0), parts.max(axis=0)
    low, high = jax.lax.fori_loop(0, num_halvings, halve, ends)
    return low + (high - low) / 2


def make_coverage_calculator(
    level: float = 0.9, parse: ParseFn = split_mean_and_std
) -> ArrayMetric:
    """Returns the fraction of targets inside the central interval of the mixture.

    That is between the quantiles of levels (1 − level)/2 and (1 + level)/2; the mean
    over rows and outputs should be `level`.

    >>> import numpy as np
    >>> from enn import metrics
    >>> coverage = metrics.make_coverage_calculator(level=0.9)
    >>> outputs = np.array([[[0.0, 1.0]] * 4])  # N(0, 1): from -1.64 to 1.64
    >>> float(coverage(outputs, np.array([[-1.0], [0.0], [1.0], [2.0]])))
    0.75

    Args:
      level: probability of the interval, in (0, 1).
      parse: turns outputs into means and standard deviations.

    Raises:
      ValueError: if `level` is not in (0, 1).
    """
    _check_level("level", level)

    def calculator(outputs: chex.Array, targets: chex.Array) -> jax.Array:
        return _coverage(_cdf(outputs, targets, parse), level)

    return calculator


@jax.jit
def _coverage(cdf: jax.Array, level: float) -> jax.Array:
    is_inside = jnp.abs(cdf - 0.5) <= level / 2
    return pairwise_mean(jnp.ravel(jnp.where(jnp.isnan(cdf), jnp.nan, is_inside)))


def make_interval_width_calculator(
    level: float = 0.9, parse: ParseFn = split_mean_and_std
) -> ArrayMetric:
    """Returns the width of the central interval of the mixture.

    Quantile (1 + level)/2 less quantile (1 − level)/2. Mean over rows and outputs, in
    units of the target: of two networks with the same coverage, the one with narrower
    intervals is sharper.

    >>> import numpy as np
    >>> from enn import metrics
    >>> width = metrics.make_interval_width_calculator(level=0.9)
    >>> outputs = np.array([[[0.0, 1.0]]])  # N(0, 1): from -1.645 to 1.645
    >>> round(float(width(outputs, np.array([[0.0]]))), 2)
    3.29

    Args:
      level: probability of the interval, in (0, 1).
      parse: turns outputs into means and standard deviations.

    Returns:
      A calculator, which does not look at the targets.

    Raises:
      ValueError: if `level` is not in (0, 1).
    """
    _check_level("level", level)
    levels = np.array([(1 - level) / 2, (1 + level) / 2], np.float32)

    def calculator(outputs: chex.Array, targets: chex.Array) -> jax.Array:
        low, high = _quantiles(outputs, levels, parse)
        return pairwise_mean(jnp.ravel(high - low))

    return calculator


def make_calibration_aggregator(
    num_bins: int = 20, parse: ParseFn = split_mean_and_std
) -> AggregateMetricCalculator:
    """Returns the calibration error of quantiles over many batches.

    The mean over levels i/num_bins of |observed − level|, for the fraction `observed`
    of targets below the quantile of that level (Kuleshov et al., 2018,
    https://arxiv.org/abs/1807.00263). `calibration_curve(state.extra)` is the curve.

    >>> import numpy as np
    >>> from enn import metrics
    >>> error = metrics.make_calibration_aggregator(num_bins=2)
    >>> outputs = np.array([[[0.0, 1.0]] * 4])  # N(0, 1): half should be below 0.
    >>> state = error(outputs, np.array([[-1.0], [1.0], [1.0], [1.0]]))
    >>> float(state.value)  # |¼ - ½| at level ½, 0 at level 1.
    0.125

    Args:
      num_bins: number of bins of the targets' values under `calculate_mixture_cdf`.
      parse: turns outputs into means and standard deviations.

    Raises:
      ValueError: unless `num_bins` is an integer >= 1.
    """
    _checks.positive_int("num_bins", num_bins)

    def batch_sums(outputs: chex.Array, targets: chex.Array) -> jax.Array:
        return _count_by_bin(_cdf(outputs, targets, parse), num_bins)

    return make_sum_aggregator(batch_sums, _calibration_error)


@functools.partial(jax.jit, static_argnames="num_bins")
def _count_by_bin(cdf: jax.Array, num_bins: int) -> jax.Array:
    bins = jnp.clip((cdf * num_bins).astype(jnp.int32), 0, num_bins - 1)
    bins = jnp.ravel(jnp.where(jnp.isnan(cdf), num_bins, bins))
    # The last count is of targets whose prediction is NaN.
    return jax.ops.segment_sum(jnp.ones_like(bins), bins, num_bins + 1)


@jax.jit
def _calibration_error(counts: jax.Array) -> jax.Array:
    level, observed = _curve(counts)
    return pairwise_mean(jnp.abs(observed - level)[1:])


def calibration_curve(counts: chex.Array) -> CalibrationCurve:
    """Returns the curve to plot: how often targets lie below the predicted quantiles.

    As in Kuleshov et al., 2018, https://arxiv.org/abs/1807.00263.

    >>> import numpy as np
    >>> from enn import metrics
    >>> error = metrics.make_calibration_aggregator(num_bins=2)
    >>> outputs = np.array([[[0.0, 1.0]] * 4])  # N(0, 1)
    >>> state = error(outputs, np.array([[-1.0], [1.0], [1.0], [1.0]]))
    >>> curve = metrics.calibration_curve(state.extra)
    >>> print(curve.level, curve.observed)
    [0.  0.5 1. ] [0.   0.25 1.  ]

    Args:
      counts: `state.extra` of `make_calibration_aggregator`.
    """
    return CalibrationCurve(*map(np.asarray, _curve(jnp.asarray(counts))))


def _curve(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    num_nan, counts = counts[-1], counts[:-1]
    below = jnp.cumsum(jnp.pad(counts, (1, 0)))
    level = jnp.linspace(0, 1, len(counts) + 1)
    return level, jnp.where(num_nan > 0, jnp.nan, below / below[-1])


def _check_level(name: str, level: Any) -> None:
    if not 0 < level < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {level}.")


def _parsed(parse: ParseFn, outputs: chex.Array) -> tuple[jax.Array, jax.Array]:
    check_not_empty("outputs", outputs)
    mean, std = map(at_least_float32, parse(outputs))
    axes = "[num_enn_samples, batch, num_outputs]"
    _checks.shape("means", mean, (None, None, None), axes)
    _checks.shape("standard deviations", std, mean.shape, f"{axes}, like the means")
    return mean, std


def _errors(targets: chex.Array, mean: jax.Array) -> jax.Array:
    """Returns targets minus means, for targets `[batch, num_outputs]` or `[batch]`."""
    targets = at_least_float32(targets)
    targets = targets[:, None] if targets.ndim == 1 else targets
    _checks.shape("targets", targets, mean.shape[1:], "[batch, num_outputs]")
    return targets[None] - mean
