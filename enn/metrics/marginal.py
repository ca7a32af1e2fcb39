"""Metrics of marginal predictions: each row by itself.

The marginal prediction is the mean over epistemic indices of the class
probabilities, p(y | x) = (1/S) Σₛ softmax(f(x, zₛ))_y.
"""

import chex
import jax
import jax.numpy as jnp

from enn import _checks, _sharding
from enn.metrics.base import (
    ArrayMetric,
    at_least_float32,
    pairwise_mean,
    pairwise_sum,
)
from enn.metrics.likelihood import (
    at_labels,
    average_log_likelihood,
    check_integer_labels,
    check_labels,
    check_not_empty,
    label_log_likelihoods,
    marginal_probs,
)


def categorical_log_likelihood(probs: chex.Array, labels: chex.Array) -> jax.Array:
    """Log-likelihood of a whole batch under given probabilities: Σ_b log p_b(y_b).

    >>> import numpy as np
    >>> from enn import metrics
    >>> probs = np.array([[0.5, 0.5], [0.2, 0.8]])
    >>> log_likelihood = metrics.categorical_log_likelihood(probs, np.array([[0], [1]]))
    >>> round(float(np.exp(log_likelihood)), 3)  # 0.5 · 0.8
    0.4

    Args:
      probs: `[batch, num_classes]`.
      labels: integer classes `[batch, 1]`.

    Returns:
      A scalar; −∞ if a label has probability 0.

    Raises:
      TypeError: unless the labels are integers.
      ValueError: if a label is out of range, or a shape is wrong.
    """
    _checks.shape("probs", probs, (None, None), "[batch, num_classes]")
    classes = check_integer_labels(labels, *probs.shape)
    return _log_likelihood(probs, classes)


@_sharding.allow_explicit_axes
@jax.jit
def _log_likelihood(probs: chex.Array, classes: chex.Array) -> jax.Array:
    return pairwise_sum(jnp.log(at_least_float32(at_labels(probs, classes))))


def calculate_marginal_ll(logits: chex.Array, labels: chex.Array) -> jax.Array:
    """Marginal log-likelihood, mean over the batch, in nats.

    (1/B) Σ_b log (1/S) Σₛ softmax(logits_sb)_y, in log space throughout: a confident
    wrong prediction gives a large number, not −∞.

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
      labels: integer classes `[batch, 1]`.

    Returns:
      A scalar.

    Raises:
      TypeError: unless the labels are integers.
      ValueError: if a label is out of range, or a shape is wrong.
    """
    check_not_empty("logits", logits)
    return average_log_likelihood(label_log_likelihoods(logits, labels))


def make_nll_marginal_calculator() -> ArrayMetric:
    """Returns the negative of `calculate_marginal_ll`.

    >>> import numpy as np
    >>> from enn import metrics
    >>> nll = metrics.make_nll_marginal_calculator()
    >>> logits = np.log([[[0.9, 0.1]], [[0.5, 0.5]]])  # Two indices, one row.
    >>> round(float(nll(logits, np.array([[0]]))), 3)  # -log ½ (0.9 + 0.5)
    0.357
    """

    def calculator(logits: chex.Array, labels: chex.Array) -> jax.Array:
        return -calculate_marginal_ll(logits, labels)

    return calculator


def calculate_accuracy(logits: chex.Array, labels: chex.Array) -> jax.Array:
    """Fraction of rows whose most probable class, marginally, is the label.

    (1/B) Σ_b 1[argmax_c (1/S) Σₛ softmax(logits_sb)_c = y_b].

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
      labels: classes `[batch, 1]`.

    Returns:
      A scalar in [0, 1]; NaN if a logit is NaN.

    Raises:
      ValueError: unless labels are integers in range and shapes are right.
    """
    check_not_empty("logits", logits)
    return pairwise_mean(is_correct(marginal_probs(logits), labels))


def make_accuracy_calculator() -> ArrayMetric:
    """Returns `calculate_accuracy`.

    >>> import numpy as np
    >>> from enn import metrics
    >>> accuracy = metrics.make_accuracy_calculator()
    >>> logits = np.log([[[0.9, 0.1]], [[0.4, 0.6]]])  # On average class 0, by 0.65.
    >>> float(accuracy(logits, np.array([[0]])))
    1.0
    >>> accuracy(logits, np.array([[2]]))
    Traceback (most recent call last):
        ...
    ValueError: labels must be integers in [0, 2), got 2 in row 0.
    """
    return calculate_accuracy


def is_correct(probs: jax.Array, labels: chex.Array) -> jax.Array:
    """Whether the most probable class is the label.

    Args:
      probs: `[batch, num_classes]`.
      labels: classes `[batch, 1]`.

    Returns:
      1, 0, or NaN where a probability is NaN, `[batch]`.

    Raises:
      ValueError: unless the labels are integers in range, one a row.
    """
    return _is_most_probable(probs, check_labels(labels, *probs.shape))


@_sharding.allow_explicit_axes
@jax.jit
def _is_most_probable(probs: jax.Array, classes: chex.Array) -> jax.Array:
    # argmax takes NaN for the largest, which may be the label.
    is_nan = jnp.isnan(probs).any(axis=-1)
    return jnp.where(is_nan, jnp.nan, jnp.argmax(probs, axis=-1) == classes)
