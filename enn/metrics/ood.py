"""Detection of out-of-distribution inputs from any score: AUROC and AUPR.

Out of distribution is the positive class, and should have the higher scores
(Hendrycks and Gimpel, 2017, https://arxiv.org/abs/1610.02136). Good scores are in
`enn.metrics.uncertainty`.
"""

import chex
import jax
import jax.numpy as jnp

from enn import _checks
from enn.metrics.base import AggregateMetricCalculator, pairwise_sum
from enn.metrics.histogram import (
    ScoreFn,
    ScoreHistogram,
    exact_histogram,
    make_histogram_aggregator,
    nan_if_any_is,
)


def calculate_auroc(scores: chex.Array, is_ood: chex.Array) -> jax.Array:
    """Area under the receiver operating characteristic.

    P(s₊ > s₋) + ½ P(s₊ = s₋) for the scores of a random row out of and in distribution.

    To detect such inputs: Hendrycks and Gimpel, 2017, https://arxiv.org/abs/1610.02136.

    >>> import numpy as np
    >>> from enn import metrics
    >>> scores, is_ood = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    >>> float(metrics.calculate_auroc(scores, is_ood))  # Three of four pairs in order.
    0.75

    Args:
      scores: higher for rows that seem out of distribution, `[n]`.
      is_ood: 1 or True for rows out of distribution, else 0 or False, `[n]`.

    Returns:
      A scalar in [0, 1]; 0.5, as for a random score, if rows of one kind are missing.

    Raises:
      ValueError: if `is_ood` is neither 0 nor 1, shapes differ, or a score is NaN.
    """
    area = _auroc(exact_histogram(scores, _as_binary(is_ood)))
    return nan_if_any_is(scores, area)


def calculate_aupr(scores: chex.Array, is_ood: chex.Array) -> jax.Array:
    """Area under the precision–recall curve, as average precision.

    Σᵢ (Rᵢ − Rᵢ₋₁) Pᵢ over the distinct scores in falling order, with precision Pᵢ and
    recall Rᵢ of calling rows with at least this score out of distribution. There is
    no interpolation, which would be too optimistic.

    To detect such inputs: Hendrycks and Gimpel, 2017, https://arxiv.org/abs/1610.02136.

    >>> import numpy as np
    >>> from enn import metrics
    >>> scores, is_ood = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    >>> round(float(metrics.calculate_aupr(scores, is_ood)), 3)  # ½ · 1 + ½ · ⅔
    0.833

    Args:
      scores: higher for rows that seem out of distribution, `[n]`.
      is_ood: 1 or True for rows out of distribution, else 0 or False, `[n]`.

    Returns:
      A scalar in [0, 1]; 0 if no row is out of distribution.

    Raises:
      ValueError: if `is_ood` is neither 0 nor 1, shapes differ, or a score is NaN.
    """
    area = _aupr(exact_histogram(scores, _as_binary(is_ood)))
    return nan_if_any_is(scores, area)


def make_auroc_aggregator(
    score_fn: ScoreFn, num_bits: int = 16
) -> AggregateMetricCalculator:
    """Returns the AUROC over many batches, in constant memory.

    Scores in one bin of `binned_histogram` count as tied. The value does not depend on
    how the rows are cut into batches, and differs from `calculate_auroc` of all rows
    by at most ½ Σᵢ PᵢNᵢ / (PN), half the fraction of pairs that share a bin, for
    Pᵢ and Nᵢ rows out of and in distribution in bin i.

    >>> import numpy as np
    >>> from enn import metrics
    >>> auroc = metrics.make_auroc_aggregator(metrics.predictive_entropy)
    >>> sure, unsure = np.log([[[0.9, 0.1]]]), np.log([[[0.5, 0.5]]])
    >>> state = auroc(sure, np.array([[0]]))
    >>> state = auroc(unsure, np.array([[1]]), state)
    >>> float(state.value)
    1.0

    Args:
      score_fn: `logits -> scores`, `[batch]`, higher for out of distribution.
      num_bits: bits of the score to keep; the state has 2 · 2^num_bits integers.

    Returns:
      An aggregator `(logits, is_ood, state)`, with `is_ood` 0 or 1, `[batch, 1]`; its
      value is 0.5 until rows of both kinds have been seen.
    """
    return make_histogram_aggregator(score_fn, _binary_labels, _auroc, num_bits)


def make_aupr_aggregator(
    score_fn: ScoreFn, num_bits: int = 16
) -> AggregateMetricCalculator:
    """Returns the AUPR over many batches, in constant memory.

    Scores in one bin of `binned_histogram` count as tied. The value does not depend on
    how the rows are cut into batches, and differs from `calculate_aupr` of all rows by
    at most Σᵢ Pᵢ/P [(T + Pᵢ) / (T + Pᵢ + F) − (T + 1) / (T + 1 + F + Nᵢ)], for Pᵢ and
    Nᵢ rows out of and in distribution in bin i, T and F in all higher bins.

    >>> import numpy as np
    >>> from enn import metrics
    >>> aupr = metrics.make_aupr_aggregator(metrics.predictive_entropy)
    >>> sure, unsure = np.log([[[0.9, 0.1]]]), np.log([[[0.5, 0.5]]])
    >>> state = aupr(sure, np.array([[1]]))
    >>> state = aupr(unsure, np.array([[0]]), state)
    >>> float(state.value)  # The row to find comes last of two.
    0.5

    Args:
      score_fn: `logits -> scores`, `[batch]`, higher for out of distribution.
      num_bits: bits of the score to keep; the state has 2 · 2^num_bits integers.

    Returns:
      An aggregator `(logits, is_ood, state)`, with `is_ood` 0 or 1, `[batch, 1]`; its
      value is 0 until a row out of distribution has been seen.
    """
    return make_histogram_aggregator(score_fn, _binary_labels, _aupr, num_bits)


def _as_binary(is_ood: chex.Array) -> jax.Array:
    _checks.class_labels(is_ood, 2)
    return jnp.asarray(is_ood, jnp.int32)


def _binary_labels(logits: chex.Array, is_ood: chex.Array) -> jax.Array:
    return _as_binary(_checks.as_column("is_ood", is_ood))[:, 0]


@jax.jit
def _auroc(histogram: ScoreHistogram) -> jax.Array:
    positives, negatives = histogram.totals, histogram.counts - histogram.totals
    beaten = jnp.cumsum(negatives) - negatives / 2
    wins = pairwise_sum(positives * beaten)
    pairs = positives.sum() * negatives.sum().astype(wins.dtype)
    return jnp.where(pairs > 0, wins / jnp.maximum(pairs, 1), 0.5)


@jax.jit
def _aupr(histogram: ScoreHistogram) -> jax.Array:
    counts, positives = histogram
    num_called = jnp.cumsum(counts[::-1])[::-1]
    precision = jnp.cumsum(positives[::-1])[::-1] / jnp.maximum(num_called, 1)
    return pairwise_sum(positives * precision) / jnp.maximum(positives.sum(), 1)
