"""Selective prediction: accept the rows the network is sure of, abstain on the rest.

Rows are accepted from the least uncertain on. Coverage is the fraction accepted, risk
their mean loss (Geifman and El-Yaniv, 2017, https://arxiv.org/abs/1705.08500). A good
uncertainty puts the errors last.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn.metrics.base import AggregateMetricCalculator, PerExampleMetric, pairwise_sum
from enn.metrics.histogram import (
    ScoreFn,
    ScoreHistogram,
    exact_histogram,
    make_histogram_aggregator,
    nan_if_any_is,
)
from enn.metrics.likelihood import marginal_probs
from enn.metrics.marginal import is_correct
from enn.metrics.uncertainty import variation_ratio


class RiskCoverageCurve(NamedTuple):
    """Risk at each coverage that a threshold on the uncertainty can give.

    Attributes:
      coverage: fraction of rows accepted, rising to 1, `[num_thresholds]`.
      risk: mean loss of the rows accepted, `[num_thresholds]`.
    """

    coverage: np.ndarray
    risk: np.ndarray


def zero_one_loss(logits: chex.Array, labels: chex.Array) -> jax.Array:
    """Whether the marginal prediction is wrong, 1[argmax_c p̄(c) ≠ y], `[batch]`.

    NaN for NaN logits.

    >>> import numpy as np
    >>> from enn import metrics
    >>> logits = np.log([[[0.8, 0.2], [0.6, 0.4]]])  # Predicts class 0 twice.
    >>> print(metrics.zero_one_loss(logits, np.array([[0], [1]])))
    [0. 1.]

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
      labels: classes `[batch, 1]`.

    Raises:
      ValueError: unless labels are integers in range and shapes are right.
    """
    return 1 - is_correct(marginal_probs(logits), labels)


def calculate_aurc(uncertainty: chex.Array, losses: chex.Array) -> jax.Array:
    """Area under the risk–coverage curve, lower is better.

    (1/n) Σₖ risk of the k least uncertain rows, with the risk at the end of the tie for
    rows that are tied (Geifman et al., 2019, https://arxiv.org/abs/1805.08206).

    >>> import numpy as np
    >>> from enn import metrics
    >>> uncertainty, losses = np.array([0.1, 0.2, 0.9]), np.array([0, 0, 1])
    >>> round(float(metrics.calculate_aurc(uncertainty, losses)), 3)  # (0 + 0 + ⅓) / 3
    0.111

    Args:
      uncertainty: higher for rows to abstain on, `[n]`.
      losses: loss of each row, such as `zero_one_loss`, `[n]`.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes differ, or an uncertainty is NaN.
    """
    area = _aurc(exact_histogram(uncertainty, losses))
    return nan_if_any_is(uncertainty, area)


def make_aurc_aggregator(
    uncertainty_fn: ScoreFn = variation_ratio,
    loss_fn: PerExampleMetric = zero_one_loss,
    num_bits: int = 16,
) -> AggregateMetricCalculator:
    """Returns the area under the risk–coverage curve over many batches.

    Memory is constant: uncertainties in one bin of `binned_histogram` count as tied.
    The value depends on how the rows are cut into batches by rounding only, where
    losses are not integers. For losses of 0 or 1 it differs from `calculate_aurc` of
    all rows by at most Σᵢ nᵢ/n [(E + eᵢ) / (K + max(eᵢ, 1)) − E / (K + nᵢ − eᵢ)], for
    nᵢ rows with eᵢ errors in bin i, K and E in all lower bins, and 0/0 = 0.

    `risk_coverage_curve(state.extra)` is the curve.

    >>> import numpy as np
    >>> from enn import metrics
    >>> aurc = metrics.make_aurc_aggregator()
    >>> state = aurc(np.log([[[0.9, 0.1], [0.8, 0.2]]]), np.array([[0], [0]]))
    >>> state = aurc(np.log([[[0.6, 0.4]]]), np.array([[1]]), state)
    >>> round(float(state.value), 3)  # The least certain row is wrong: ⅓ / 3
    0.111

    Args:
      uncertainty_fn: `logits -> uncertainty`, `[batch]`, higher for rows to abstain on.
      loss_fn: `(logits, labels) -> losses`, `[batch]`.
      num_bits: bits of the uncertainty to keep; the state has 2 · 2^num_bits numbers.
    """
    return make_histogram_aggregator(uncertainty_fn, loss_fn, _aurc, num_bits)


def risk_coverage_curve(histogram: ScoreHistogram) -> RiskCoverageCurve:
    """Returns the curve, with a point for each bin that holds rows; not for `jax.jit`.

    At coverage k/n the risk is the mean loss of the k least uncertain rows (Geifman and
    El-Yaniv, 2017, https://arxiv.org/abs/1705.08500).

    >>> import numpy as np
    >>> from enn import metrics
    >>> uncertainty, losses = np.array([0.1, 0.2, 0.9, 1.0]), np.array([0, 0, 1, 1])
    >>> histogram = metrics.exact_histogram(uncertainty, losses)
    >>> curve = metrics.risk_coverage_curve(histogram)
    >>> print(curve.coverage, curve.risk.round(2))
    [0.25 0.5  0.75 1.  ] [0.   0.   0.33 0.5 ]

    Args:
      histogram: losses by uncertainty: `exact_histogram(uncertainty, losses)`, or
        `state.extra` of `make_aurc_aggregator`.
    """
    filled = np.asarray(histogram.counts) > 0
    coverage = jnp.cumsum(histogram.counts) / histogram.counts.sum()
    return RiskCoverageCurve(
        np.asarray(coverage)[filled], np.asarray(_risk(histogram))[filled]
    )


def _risk(histogram: ScoreHistogram) -> jax.Array:
    counts, losses = histogram
    return jnp.cumsum(losses) / jnp.maximum(jnp.cumsum(counts), 1)


@jax.jit
def _aurc(histogram: ScoreHistogram) -> jax.Array:
    counts = histogram.counts
    return pairwise_sum(counts * _risk(histogram)) / jnp.maximum(counts.sum(), 1)
