"""Histograms of a score: all that a metric of a ranking needs, in constant memory.

AUROC, AUPR and risk–coverage depend on the scores only through their order, so they
are functions of what lies in each bin, with the rows of one bin taken as tied.
`exact_histogram` has one bin for each distinct score. `binned_histogram` has fixed
bins, so that histograms of batches add up to the histogram of all rows.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _sharding, base
from enn.metrics.base import (
    AggregateMetricCalculator,
    MetricsState,
    at_least_float32,
    make_sum_aggregator,
)

ScoreFn = Callable[[base.AnyArray], chex.Array]
"""Maps logits, or whatever is passed in their place, to scores `[batch]`."""


class ScoreHistogram(NamedTuple):
    """Rows by score, lowest score first. Histograms over equal bins add up.

    Attributes:
      counts: number of rows in each bin, `[num_bins]`.
      totals: sum of their values in each bin, `[num_bins]`.
    """

    counts: jax.Array
    totals: jax.Array


@_sharding.allow_explicit_axes
def exact_histogram(scores: chex.Array, values: chex.Array) -> ScoreHistogram:
    """Returns the histogram with one bin for each distinct score.

    >>> import numpy as np
    >>> from enn import metrics
    >>> scores, is_wrong = np.array([0.9, 0.1, 0.9]), np.array([1, 0, 1])
    >>> histogram = metrics.exact_histogram(scores, is_wrong)
    >>> print(histogram.counts, histogram.totals)
    [1 2 0] [0 2 0]

    Args:
      scores: `[n]`.
      values: what to sum, `[n]`: booleans, integers or floats.

    Returns:
      `n` bins; where scores are tied, as many bins at the end are empty.

    Raises:
      ValueError: if a shape is not `[n]`, or a score is NaN.
    """
    _check_rows(scores, values)
    return _exact_histogram(scores, values)


@_sharding.allow_explicit_axes
def binned_histogram(
    scores: chex.Array, values: chex.Array, num_bits: int = 16
) -> ScoreHistogram:
    """Returns the histogram over the first bits of a float32 score.

    A bin holds the floats that share sign, exponent and the first `num_bits - 9` bits
    of the mantissa. So there is no range to choose: two scores of one sign share a bin
    only if they agree to within a factor of 1 + 2^(9 - num_bits), 0.8 % for 16 bits.
    Bins are finest around 0: rank confident rows by 1 − p and not by p.

    >>> import numpy as np
    >>> from enn import metrics
    >>> scores, is_wrong = np.array([0.9, 0.1, 0.901]), np.array([1, 0, 1])
    >>> histogram = metrics.binned_histogram(scores, is_wrong)
    >>> holds_rows = histogram.counts > 0
    >>> print(histogram.counts[holds_rows], histogram.totals[holds_rows])
    [1 2] [0 2]

    Args:
      scores: `[n]`.
      values: what to sum, `[n]`: booleans, integers or floats.
      num_bits: bits of the score to keep, 9 to 24.

    Returns:
      `2 ** num_bits` bins.

    Raises:
      ValueError: if a shape is not `[n]`, a score is NaN, or `num_bits` is out of
        range.
    """
    _checks.one_of("num_bits", num_bits, range(9, 25))
    _check_rows(scores, values)
    return _binned_histogram(scores, values, num_bits)


def make_histogram_aggregator(
    score_fn: ScoreFn,
    value_fn: Callable[[base.AnyArray, base.AnyArray], chex.Array],
    metric: Callable[[ScoreHistogram], chex.Array],
    num_bits: int,
) -> AggregateMetricCalculator:
    """Returns `metric` of the binned histogram of all rows seen.

    Args:
      score_fn: `logits -> scores`, `[batch]`.
      value_fn: `(logits, labels) -> values`, `[batch]`.
      metric: function of the histogram.
      num_bits: as for `binned_histogram`.
    """
    _checks.one_of("num_bits", num_bits, range(9, 25))

    def aggregator(
        logits: chex.Array, labels: chex.Array, state: MetricsState | None = None
    ) -> MetricsState:
        scores, values = score_fn(logits), value_fn(logits, labels)

        def batch_sums(logits: chex.Array, labels: chex.Array) -> ScoreHistogram:
            return binned_histogram(scores, values, num_bits)

        added = make_sum_aggregator(batch_sums, metric)(logits, labels, state)
        # Inside `jax.jit`, scores of NaN raise no error; nor do they have a bin.
        was_nan = jnp.isnan(state.value) if state else False
        return added._replace(
            value=jnp.where(was_nan, jnp.nan, nan_if_any_is(scores, added.value))
        )

    return aggregator


def nan_if_any_is(scores: chex.Array, value: chex.Numeric) -> jax.Array:
    """Returns NaN if any score is NaN, else `value`."""
    return jnp.where(jnp.isnan(scores).any(), jnp.nan, value)


def _check_rows(scores: chex.Array, values: chex.Array) -> None:
    _checks.shape("scores", scores, (None,), "[n]")
    _checks.shape("values", values, np.shape(scores), "[n], like the scores")
    if _checks.is_concrete(scores) and np.isnan(scores).any():
        raise ValueError("scores must not be NaN.")


@jax.jit
def _exact_histogram(scores: jax.Array, values: jax.Array) -> ScoreHistogram:
    _, bins = jnp.unique(scores, return_inverse=True, size=len(scores))
    return _sum_by_bin(bins, values, len(scores))


@functools.partial(jax.jit, static_argnames="num_bits")
def _binned_histogram(
    scores: jax.Array, values: jax.Array, num_bits: int
) -> ScoreHistogram:
    # Read as integers, positive floats are in order and negative ones in reverse, below
    # them once their bits are flipped; -0 must be made 0.
    floats = jnp.where(scores == 0, 0, scores).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(floats, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits < sign, bits | sign, ~bits)
    return _sum_by_bin(ordered >> (32 - num_bits), values, 2**num_bits)


def _sum_by_bin(bins: jax.Array, values: jax.Array, num_bins: int) -> ScoreHistogram:
    counts = jax.ops.segment_sum(jnp.ones_like(bins, jnp.int32), bins, num_bins)
    # Integers, where possible: their sums do not depend on the order.
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.int32)
        return ScoreHistogram(counts, jax.ops.segment_sum(values, bins, num_bins))
    order = jnp.argsort(bins)
    bins, values = bins[order], at_least_float32(values)[order]

    def add_within_bin(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        total = jnp.where(left[0] == right[0], left[1] + right[1], right[1])
        return right[0], total

    # In pairs, as `pairwise_sum` does: one after the other, sums lose digits.
    _, sums = jax.lax.associative_scan(add_within_bin, (bins, values))
    is_last = jnp.append(bins[1:] != bins[:-1], True)
    totals = jnp.zeros(num_bins, sums.dtype)
    return ScoreHistogram(counts, totals.at[bins].add(jnp.where(is_last, sums, 0)))
