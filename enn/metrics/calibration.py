"""Calibration: does a confidence of 80 % mean right 80 % of the time?

Confidence is the largest marginal class probability. Rows are sorted into bins of
equal width by confidence, and each bin's mean confidence is compared with its
accuracy (Guo et al., 2017, https://arxiv.org/abs/1706.04599).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from enn import _checks, _sharding
from enn.metrics.base import (
    AggregateMetricCalculator,
    MetricCalculator,
    MetricsState,
    make_sum_aggregator,
    pairwise_sum,
)
from enn.metrics.likelihood import check_not_empty, marginal_probs
from enn.metrics.marginal import is_correct

BinSums = dict[str, jax.Array]


class ReliabilityDiagram(NamedTuple):
    """What a reliability diagram shows, one entry for each bin of confidence.

    Attributes:
      confidence: mean confidence, `[num_bins]`; 0 in an empty bin.
      accuracy: fraction of rows predicted right, `[num_bins]`; 0 in an empty bin.
      counts: number of rows, `[num_bins]`.
    """

    confidence: jax.Array
    accuracy: jax.Array
    counts: jax.Array


class ExpectedCalibrationError(AggregateMetricCalculator):
    """Expected calibration error over many batches.

    ECE = Σᵢ (nᵢ/n) |accuracyᵢ − confidenceᵢ| (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599, equation 3). Bin i holds confidences in
    [i/num_bins, (i+1)/num_bins); the last bin holds 1 too. The sums of each bin are in
    `state.extra`, which `reliability_diagram` reads.

    >>> import numpy as np
    >>> from enn import metrics
    >>> ece = metrics.ExpectedCalibrationError(num_bins=10)
    >>> logits = np.log([[[0.75, 0.25]] * 4])  # Sure to 75 %, half of it right
    >>> state = ece(logits, np.array([[0], [0], [1], [1]]))
    >>> round(float(state.value), 3)
    0.25

    Attributes:
      num_bins: number of bins.

    Raises:
      ValueError: unless `num_bins` is an integer >= 1.
    """

    def __init__(self, num_bins: int):
        self.num_bins = _checks.positive_int("num_bins", num_bins)
        self._aggregator = make_sum_aggregator(self._batch_sums, _calibration_error)

    def _batch_sums(self, logits: chex.Array, labels: chex.Array) -> BinSums:
        probs = marginal_probs(logits)
        return _bin_sums(probs, is_correct(probs, labels), self.num_bins, _bin_by_edge)

    def __call__(
        self,
        logits: chex.Array,
        labels: chex.Array,
        state: MetricsState | None = None,
    ) -> MetricsState:
        """Returns the state with the batch added.

        Args:
          logits: `[num_enn_samples, batch, num_classes]`.
          labels: classes `[batch, 1]`.
          state: what the last call returned; None or `MetricsState()` to start.

        Raises:
          ValueError: unless labels are integers in range and shapes are right.
        """
        return self._aggregator(logits, labels, state)


@dataclasses.dataclass
class SingleBatchECE(MetricCalculator):
    """Expected calibration error of one batch.

    As `ExpectedCalibrationError`, except that the bin of confidence c is
    ⌊c · num_bins⌋ in floating point, which may differ where c is at an edge. Numbers
    follow the original `enn`.

    >>> import numpy as np
    >>> from enn import metrics
    >>> logits = np.log([[[0.75, 0.25]] * 4])
    >>> labels = np.array([[0], [0], [0], [1]])  # Three of four, as predicted.
    >>> round(float(metrics.SingleBatchECE(num_bins=10)(logits, labels)), 3)
    0.0

    Attributes:
      num_bins: number of bins.

    Raises:
      ValueError: unless `num_bins` is an integer >= 1.
    """

    num_bins: int

    def __post_init__(self) -> None:
        _checks.positive_int("num_bins", self.num_bins)

    def __call__(self, logits: chex.Array, labels: chex.Array) -> jax.Array:
        """Returns a scalar in [0, 1].

        Args:
          logits: `[num_enn_samples, batch, num_classes]`.
          labels: classes `[batch, 1]`.

        Raises:
          ValueError: unless labels are integers in range and shapes are right.
        """
        check_not_empty("logits", logits)
        probs = marginal_probs(logits)
        correct = is_correct(probs, labels)
        return _calibration_error(
            _bin_sums(probs, correct, self.num_bins, _bin_by_floor)
        )


def reliability_diagram(bin_sums: BinSums) -> ReliabilityDiagram:
    """Returns what to draw: confidence and accuracy of each bin.

    Mean confidence and accuracy of bin i are Σ confidence / nᵢ and Σ correct / nᵢ (Guo
    et al., 2017, https://arxiv.org/abs/1706.04599, section 2).

    >>> import numpy as np
    >>> from enn import metrics
    >>> logits, labels = np.log([[[0.75, 0.25]] * 4]), np.array([[0], [0], [1], [1]])
    >>> state = metrics.ExpectedCalibrationError(num_bins=2)(logits, labels)
    >>> diagram = metrics.reliability_diagram(state.extra)
    >>> round(float(diagram.confidence[1]), 3), float(diagram.accuracy[1])
    (0.75, 0.5)

    Args:
      bin_sums: `state.extra` of `ExpectedCalibrationError`, after one batch or many.
    """
    counts = bin_sums["counts"]
    rows = jnp.maximum(counts, 1)
    return ReliabilityDiagram(
        bin_sums["prob_sums"] / rows, bin_sums["correct_sums"] / rows, counts
    )


def _bin_by_edge(confidence: jax.Array, num_bins: int) -> jax.Array:
    edges = jnp.linspace(0, 1, num_bins + 1, dtype=confidence.dtype)
    return jnp.searchsorted(edges, confidence, side="right") - 1


def _bin_by_floor(confidence: jax.Array, num_bins: int) -> jax.Array:
    return jnp.floor(confidence * num_bins).astype(jnp.int32)


@_sharding.allow_explicit_axes
@functools.partial(jax.jit, static_argnames=("num_bins", "bin_fn"))
def _bin_sums(
    probs: jax.Array,
    correct: jax.Array,
    num_bins: int,
    bin_fn: Callable[[jax.Array, int], jax.Array],
) -> BinSums:
    confidence = probs.max(axis=-1)
    # A confidence of 1, or above it by rounding, belongs to the last bin.
    bins = jnp.clip(bin_fn(confidence, num_bins), 0, num_bins - 1)

    in_bin = jax.nn.one_hot(bins, num_bins, dtype=bool)

    def count(rows: jax.Array) -> jax.Array:
        return jnp.sum(in_bin & rows[:, None], axis=0, dtype=jnp.int32)

    # Integers, for float32 counts end at 2²⁴.
    return {
        "correct_sums": count(correct == 1),
        "prob_sums": pairwise_sum(jnp.where(in_bin, confidence[:, None], 0)),
        "counts": count(jnp.ones_like(correct, bool)),
    }


@jax.jit
def _calibration_error(bin_sums: BinSums) -> jax.Array:
    # (n_i / n) |correct_i / n_i - prob_i / n_i|, with n_i cancelled.
    gaps = jnp.abs(bin_sums["correct_sums"] - bin_sums["prob_sums"])
    return pairwise_sum(gaps) / bin_sums["counts"].sum()
