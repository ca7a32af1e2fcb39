"""Conformal prediction: sets and intervals that hold the truth as often as they say.

On rows that are exchangeable with those of the calibration, a set at level α holds the
label with a probability of at least 1 - α, whatever the network: that of k / (n + 1),
for the k-th smallest of n scores, if scores do not tie. Scores are of marginal
predictions: probabilities are averaged over the index samples, not logits.

All of this runs on the host, in float64: which classes are in a set is a matter of
scores that may differ in their last digits.
"""

import dataclasses
import math
from typing import Literal

import chex
import jax
import numpy as np

from enn import _checks
from enn.metrics.likelihood import check_integer_labels, check_not_empty

Method = Literal["thr", "aps", "raps"]
"""A score of classes: threshold, adaptive, or regularised adaptive."""


def conformal_quantile(scores: chex.Array, alpha: float) -> float:
    """Returns the k-th smallest score for k = ⌈(n + 1)(1 - α)⌉, infinite if k > n.

    Split conformal prediction (Lei et al., 2018, https://arxiv.org/abs/1604.04173).

    >>> from enn import calibration
    >>> calibration.conformal_quantile([0.1, 0.5, 0.2, 0.4], alpha=0.4)
    0.4

    Args:
      scores: of the n rows of the calibration, `[n]`.
      alpha: the miscoverage, in (0, 1).

    Raises:
      ValueError: for another `alpha`, no scores, or one that is NaN.
    """
    _check_alpha(alpha)
    scores = np.asarray(scores)
    _checks.shape("scores", scores, (None,), "[num_data]")
    check_not_empty("scores", scores)
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers, got NaN.")
    # Rounding must not lift what is an integer: 25 · 0.56 is a bit more than 14.
    k = max(math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9), 1)
    return float(np.sort(scores)[k - 1]) if k <= len(scores) else math.inf


def thr_scores(probs: chex.Array) -> np.ndarray:
    """Returns 1 - p, whose sets are smallest on average.

    Sadinle et al., 2016, https://arxiv.org/abs/1609.00451.

    >>> import numpy as np
    >>> from enn import calibration
    >>> calibration.thr_scores(np.array([[0.75, 0.25]])).tolist()
    [[0.25, 0.75]]

    Args:
      probs: class probabilities, `[batch, num_classes]`.

    Returns:
      `[batch, num_classes]`, a score for each class if it were the label.
    """
    return 1 - _as_probs(probs)


def aps_scores(probs: chex.Array, uniforms: chex.Array | None = None) -> np.ndarray:
    """Returns the probability of a class and all that are more probable, less u · p.

    Σ_{p_c ≥ p_y} p_c - u p_y is the score of class y. Sets adapt to how hard a row is
    (Romano et al., 2020, https://arxiv.org/abs/2006.02544). Of equally probable classes
    those with the lower number come first.

    >>> import numpy as np
    >>> from enn import calibration
    >>> calibration.aps_scores(np.array([[0.25, 0.5, 0.25]])).tolist()
    [[0.75, 0.5, 1.0]]

    Args:
      probs: class probabilities, `[batch, num_classes]`.
      uniforms: u in [0, 1], one a row, `[batch]`, so that sets remain the first classes
        of a ranking; 0 if left out, and sets are then larger than they need be.

    Returns:
      `[batch, num_classes]`, a score for each class if it were the label.

    Raises:
      ValueError: if a shape is wrong, or a uniform number out of range.
    """
    return raps_scores(probs, penalty=0.0, uniforms=uniforms)


def raps_scores(
    probs: chex.Array,
    penalty: float = 0.1,
    k_reg: int = 1,
    uniforms: chex.Array | None = None,
) -> np.ndarray:
    """Returns `aps_scores` plus `penalty` for each rank beyond `k_reg`.

    That is penalty · max(0, rank - k_reg), with rank 1 for the top class. Improbable
    classes, whose order is mostly noise, then seldom enter a set (Angelopoulos et al.,
    2021, https://arxiv.org/abs/2009.14193).

    >>> import numpy as np
    >>> from enn import calibration
    >>> calibration.raps_scores(np.array([[0.5, 0.25, 0.25]]), penalty=1.0).tolist()
    [[0.5, 1.75, 3.0]]

    Args:
      probs: class probabilities, `[batch, num_classes]`.
      penalty: at least 0.
      k_reg: how many ranks are free, at least 0.
      uniforms: as for `aps_scores`.

    Returns:
      `[batch, num_classes]`, a score for each class if it were the label.

    Raises:
      ValueError: if `penalty` or `k_reg` is negative, a shape is wrong, or a uniform
        number out of range.
    """
    _check_penalty(penalty, k_reg)
    probs = _as_probs(probs)
    order = np.argsort(-probs, axis=-1, kind="stable")
    total = np.cumsum(np.take_along_axis(probs, order, axis=-1), axis=-1)
    total /= total[:, -1:]  # Rounding, too, must not part the last class from 1.
    rank = np.argsort(order, axis=-1)
    scores = np.take_along_axis(total, rank, axis=-1)
    if uniforms is not None:
        uniforms = np.asarray(uniforms, float)
        _checks.shape("uniforms", uniforms, probs.shape[:1], "[batch]")
        if not ((uniforms >= 0) & (uniforms <= 1)).all():
            raise ValueError("uniforms must be in [0, 1].")
        scores -= uniforms[:, None] * probs
    return scores + penalty * np.maximum(rank + 1 - k_reg, 0)


def cqr_scores(lower: chex.Array, upper: chex.Array, targets: chex.Array) -> np.ndarray:
    """Returns how far a target lies outside an interval, negative inside.

    max(lower - y, y - upper) (Romano et al., 2019, https://arxiv.org/abs/1905.03222).

    >>> from enn import calibration
    >>> calibration.cqr_scores([0.0, 0.0], [1.0, 1.0], targets=[3.0, 0.25]).tolist()
    [2.0, -0.25]

    Args:
      lower: lower end for each row, `[batch]` or `[batch, 1]`.
      upper: upper end for each row, likewise.
      targets: likewise.

    Returns:
      `[batch]`.

    Raises:
      ValueError: if an upper end is below the lower one, or a shape is wrong.
    """
    columns = (("lower", lower), ("upper", upper), ("targets", targets))
    low, high, y = (
        _checks.as_column(k, np.asarray(v, float))[:, 0] for k, v in columns
    )
    for name, array in (("upper", high), ("targets", y)):
        _checks.shape(name, array, low.shape, "[batch], as `lower`")
    if (high < low).any():
        row = int(np.argmax(high < low))
        raise ValueError(
            f"upper must be at least lower, got [{low[row]}, {high[row]}] in row {row}."
        )
    return np.maximum(low - y, y - high)


@dataclasses.dataclass(frozen=True)
class ConformalClassifier:
    """Sets of classes, calibrated by `make_conformal_classifier`.

    Attributes:
      quantile: the largest score in a set.
      method: the score.
      allow_empty: whether sets may be empty; otherwise they hold the top class.
      penalty: of `raps_scores`.
      k_reg: of `raps_scores`.
      num_classes: number of classes of the calibration; None if any will do.
      is_random: whether the scores of the calibration were drawn with a key.
    """

    quantile: float
    method: Method
    allow_empty: bool
    penalty: float
    k_reg: int
    num_classes: int | None = None
    is_random: bool = False

    def __call__(
        self, logits: chex.Array, key: chex.PRNGKey | None = None
    ) -> np.ndarray:
        """Returns the set of each row, bool `[batch, num_classes]`.

        Args:
          logits: `[num_enn_samples, batch, num_classes]`.
          key: draws one uniform number a row for `"aps"` and `"raps"`, to be given if,
            and only if, it was given in the calibration.

        Raises:
          ValueError: for another number of classes than in the calibration, or a key
            too many or too few.
        """
        probs = _marginal_probs(logits)
        if self.num_classes not in (None, probs.shape[1]):
            raise ValueError(
                f"logits must be of {self.num_classes} classes, as in the calibration, "
                f"got {probs.shape[1]}."
            )
        if self.method != "thr" and (key is not None) != self.is_random:
            raise ValueError(
                "key must be given if, and only if, it was given in the calibration."
            )
        sets = self.scores(probs, key) <= self.quantile
        if self.allow_empty:
            return sets
        top = np.argmax(probs, axis=-1)[:, None]
        return sets | (np.arange(probs.shape[-1])[None] == top)

    def scores(self, probs: np.ndarray, key: chex.PRNGKey | None = None) -> np.ndarray:
        """Returns the scores of all classes, `[batch, num_classes]`."""
        if self.method == "thr":
            return thr_scores(probs)
        uniforms = None if key is None else jax.random.uniform(key, probs.shape[:1])
        if self.method == "aps":
            return aps_scores(probs, uniforms)
        return raps_scores(probs, self.penalty, self.k_reg, uniforms)


def make_conformal_classifier(
    logits: chex.Array,
    labels: chex.Array,
    alpha: float,
    method: Method = "aps",
    key: chex.PRNGKey | None = None,
    allow_empty: bool = False,
    penalty: float = 0.1,
    k_reg: int = 1,
) -> ConformalClassifier:
    """Returns a function of logits to sets that hold the label at a rate of 1 - α.

    {y : score(x, y) <= q}, with q the `conformal_quantile` of the labels' scores in the
    calibration; papers are beside the scores.

    >>> import numpy as np
    >>> from enn import calibration
    >>> logits, labels = np.log([[[0.75, 0.25]] * 4]), np.array([[0], [0], [0], [1]])
    >>> sets = calibration.make_conformal_classifier(logits, labels, 0.5, method="thr")
    >>> round(sets.quantile, 3)  # The third of the scores 0.25, 0.25, 0.25 and 0.75
    0.25
    >>> sets(np.log([[[0.9, 0.1], [0.55, 0.45]]])).tolist()  # At least the top class
    [[True, False], [True, False]]

    Args:
      logits: of rows that were neither trained on nor used to choose a temperature,
        `[num_enn_samples, batch, num_classes]`.
      labels: integer classes, `[batch, 1]`.
      alpha: the miscoverage, in (0, 1).
      method: `"thr"`, `"aps"` or `"raps"`, see `thr_scores` and so on.
      key: draws one uniform number a row for `"aps"` and `"raps"`, for a coverage that
        is exact and not only at least 1 - α; none without.
      allow_empty: whether sets may be empty; otherwise they hold the top class.
      penalty: of `raps_scores`.
      k_reg: of `raps_scores`.

    Raises:
      TypeError: unless the labels are integers.
      ValueError: for an unknown method, `alpha` outside (0, 1), a negative `penalty` or
        `k_reg`, no rows, or labels out of range.
    """
    _checks.one_of("method", method, ("thr", "aps", "raps"))
    _check_penalty(penalty, k_reg)
    check_not_empty("logits", logits)
    probs = _marginal_probs(logits)
    classes = np.asarray(check_integer_labels(labels, *probs.shape))
    uncalibrated = ConformalClassifier(
        math.inf, method, allow_empty, penalty, k_reg, probs.shape[1], key is not None
    )
    scores = uncalibrated.scores(probs, key)[np.arange(len(probs)), classes]
    quantile = conformal_quantile(scores, alpha)
    return dataclasses.replace(uncalibrated, quantile=quantile)


@dataclasses.dataclass(frozen=True)
class ConformalInterval:
    """Intervals of a regression, calibrated by `make_conformal_interval`.

    Attributes:
      quantile: what is added at each end.
      alpha: the miscoverage.
    """

    quantile: float
    alpha: float

    def __call__(self, samples: chex.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns lower and upper ends, `[batch, 1]` each.

        Where samples are too wide, a negative quantile moves the ends together, and an
        interval narrower than that is empty: its upper end is below the lower one.

        Args:
          samples: `[num_enn_samples, batch, 1]`.
        """
        lower, upper = _ends(samples, self.alpha)
        return lower - self.quantile, upper + self.quantile


def make_conformal_interval(
    samples: chex.Array, targets: chex.Array, alpha: float
) -> ConformalInterval:
    """Returns a function of samples to intervals that hold the target at 1 - α.

    The quantiles α/2 and 1 - α/2 of the samples, moved apart or together by the
    conformal quantile of `cqr_scores`.

    [lower - q, upper + q] (Romano et al., 2019, https://arxiv.org/abs/1905.03222).

    >>> import numpy as np
    >>> from enn import calibration
    >>> samples, targets = np.zeros([10, 4, 1]), np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> interval = calibration.make_conformal_interval(samples, targets, alpha=0.5)
    >>> [end.tolist() for end in interval(np.full([10, 1, 1], 20.0))]  # 20 ± 3
    [[[17.0]], [[23.0]]]

    Args:
      samples: predictions for rows that were not trained on,
        `[num_enn_samples, batch, 1]`, with the noise of the data if there is any.
      targets: `[batch, 1]`.
      alpha: the miscoverage, in (0, 1).

    Raises:
      ValueError: for `alpha` outside (0, 1), no rows, or a wrong shape.
    """
    _check_alpha(alpha)
    check_not_empty("samples", samples)
    scores = cqr_scores(*_ends(samples, alpha), targets)
    return ConformalInterval(conformal_quantile(scores, alpha), alpha)


def _ends(samples: chex.Array, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    _checks.shape("samples", samples, (None, None, 1), "[num_enn_samples, batch, 1]")
    levels = [alpha / 2, 1 - alpha / 2]
    lower, upper = np.quantile(np.asarray(samples, float), levels, axis=0)
    return lower, upper


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}.")


def _check_penalty(penalty: float, k_reg: int) -> None:
    if not penalty >= 0:
        raise ValueError(f"penalty must be >= 0, got {penalty}.")
    _checks.non_negative_int("k_reg", k_reg)


def _as_probs(probs: chex.Array) -> np.ndarray:
    _checks.shape("probs", probs, (None, None), "[batch, num_classes]")
    return np.asarray(probs, float)


def _marginal_probs(logits: chex.Array) -> np.ndarray:
    axes = "[num_enn_samples, batch, num_classes]"
    _checks.shape("logits", logits, (None, None, None), axes)
    logits = np.asarray(logits, float)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=0)
