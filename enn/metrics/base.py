"""What a metric is, and how it streams over batches in constant memory.

A metric of one batch is a `MetricCalculator`. Over many batches it is an
`AggregateMetricCalculator`: each call takes the state so far and returns the state
with the batch added, whose `value` is the metric of all rows seen. There are two
ways to make one: `make_average_aggregator` for a mean over rows, and
`make_sum_aggregator` for a function of sums over rows.

    accuracy = metrics.make_average_aggregator(
        metrics.make_accuracy_calculator(), weight_by_size=True
    )
    state = None
    for logits, labels in batches:
        state = accuracy(logits, labels, state)
    print(state.value)
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import base


@runtime_checkable
class MetricCalculator(Protocol):
    """A metric of one batch."""

    def __call__(self, logits: base.AnyArray, labels: base.AnyArray, /) -> chex.Numeric:
        """Returns a scalar.

        Args:
          logits: `[num_enn_samples, batch, num_classes]`, or regression samples
            `[num_enn_samples, batch, 1]`.
          labels: integer classes, or regression targets, `[batch, 1]`.
        """
        ...


ArrayMetric = Callable[[base.AnyArray, base.AnyArray], jax.Array]
"""A `MetricCalculator` of this library: those of others may return any number."""


@runtime_checkable
class PerExampleMetric(Protocol):
    """A metric of each row of a batch."""

    def __call__(self, logits: base.AnyArray, labels: base.AnyArray, /) -> chex.Array:
        """Returns `[batch]`; arguments as for `MetricCalculator`."""
        ...


class MetricsState(NamedTuple):
    """A metric over the batches seen so far: a pytree.

    >>> import numpy as np
    >>> from enn import metrics
    >>> accuracy = metrics.make_average_aggregator(metrics.make_accuracy_calculator())
    >>> logits, state = np.array([[[2.0, 0.0]]]), metrics.MetricsState()  # Class 0
    >>> for label in [0, 1, 0, 0]:
    ...     state = accuracy(logits, np.array([[label]]), state)
    >>> float(state.value), int(state.count)
    (0.75, 4)

    Attributes:
      value: the metric.
      count: number of batches, or of rows where these are the weights.
      extra: the sums that the metric is a function of, None if there are none.
    """

    value: chex.Numeric = 0.0
    count: chex.Numeric = 0
    extra: Any = None


@runtime_checkable
class AggregateMetricCalculator(Protocol):
    """A metric over many batches, one call a batch."""

    def __call__(
        self,
        logits: base.AnyArray,
        labels: base.AnyArray,
        state: MetricsState | None = None,
    ) -> MetricsState:
        """Returns the state with the batch added.

        Args:
          logits: as for `MetricCalculator`.
          labels: as for `MetricCalculator`.
          state: what the last call returned; None or `MetricsState()` to start.
        """
        ...


def make_average_aggregator(
    metric: MetricCalculator, weight_by_size: bool = False
) -> AggregateMetricCalculator:
    """Returns the running mean of `metric` over batches.

    >>> import numpy as np
    >>> from enn import metrics
    >>> accuracy = metrics.make_accuracy_calculator()
    >>> mean = metrics.make_average_aggregator(accuracy, weight_by_size=True)
    >>> logits = np.array([[[2.0, 0.0]] * 3])  # Predicts class 0 in three rows.
    >>> state = mean(logits, np.array([[0], [0], [0]]))
    >>> state = mean(logits[:, :1], np.array([[1]]), state)
    >>> float(state.value)  # Three of four rows are right.
    0.75

    Args:
      metric: a metric of one batch.
      weight_by_size: whether a batch counts once for each of its rows. Then the mean
        of a metric that is itself a mean over rows is that of one big batch, however
        the rows are cut. Otherwise each batch counts once: numbers follow the
        original `enn`, and a short last batch counts as much as a full one.
    """

    def aggregator(
        logits: chex.Array, labels: chex.Array, state: MetricsState | None = None
    ) -> MetricsState:
        value, seen, _ = state or MetricsState()
        weight = np.shape(labels)[0] if weight_by_size else 1
        count = seen + weight
        batch_value = at_least_float32(metric(logits, labels))
        # A step from the mean so far rounds less than sums that grow with the batches.
        step = (batch_value - value) * (weight / count)
        return MetricsState(jnp.where(seen == 0, batch_value, value + step), count)

    return aggregator


def make_sum_aggregator(
    batch_sums: Callable[[base.AnyArray, base.AnyArray], Any],
    value: Callable[[Any], chex.Numeric],
) -> AggregateMetricCalculator:
    """Returns a metric that is a function of sums over rows.

    The value depends on how the rows are cut into batches by rounding only, and not
    at all where the sums are of integers.

    >>> import numpy as np
    >>> from enn import metrics
    >>> def sums(samples, targets):
    ...     return ((samples.mean(axis=0) - targets) ** 2).sum(), len(targets)
    >>> rmse = metrics.make_sum_aggregator(sums, lambda s: (s[0] / s[1]) ** 0.5)
    >>> state = rmse(np.zeros([10, 3, 1]), np.zeros([3, 1]))
    >>> state = rmse(np.zeros([10, 1, 1]), np.full([1, 1], 4.0), state)
    >>> float(state.value)  # √(16 / 4)
    2.0

    Args:
      batch_sums: `(logits, labels) -> sums` of one batch, a pytree of arrays of fixed
        shape; they add up in `state.extra`.
      value: `sums -> metric`.
    """

    def aggregator(
        logits: chex.Array, labels: chex.Array, state: MetricsState | None = None
    ) -> MetricsState:
        _, count, previous = state or MetricsState()
        sums = batch_sums(logits, labels)
        if previous is not None:
            sums = jax.tree.map(jnp.add, previous, sums)
        return MetricsState(value(sums), count + 1, sums)

    return aggregator


def at_least_float32(values: chex.Numeric) -> jax.Array:
    """Returns numbers in a type in which many may be added up.

    Sums in half precision stop growing, or overflow, after some hundred rows.
    """
    dtype = jnp.result_type(values)
    return jnp.asarray(values, jnp.promote_types(dtype, jnp.float32))


def pairwise_sum(values: chex.Array, axis: int = 0) -> jax.Array:
    """Returns the sum along `axis`, in at least float32.

    Halves are added until few numbers are left, so that rounding errors grow with the
    logarithm of the size. Added one after the other, 40,000 equal float32 numbers lose
    four digits.
    """
    total = at_least_float32(values)
    axis %= total.ndim
    while (size := total.shape[axis]) > 16:
        half = -(-size // 2)
        first, second = jnp.split(total, [half], axis)
        padding = [(0, 0)] * total.ndim
        padding[axis] = (0, size % 2)
        total = first + jnp.pad(second, padding)
    return total.sum(axis)


def pairwise_mean(values: chex.Array, axis: int = 0) -> jax.Array:
    """Returns the mean along `axis`, summed by `pairwise_sum`."""
    return pairwise_sum(values, axis) / np.shape(values)[axis]


def root_mean_square(values: jax.Array) -> jax.Array:
    """Returns the root of the mean square along the first axis.

    Values are scaled before they are squared, for squares of small ones vanish.
    """
    scale = jnp.abs(values).max(axis=0)
    safe_scale = jnp.where(scale > 0, scale, 1)
    return safe_scale * jnp.sqrt(pairwise_mean(jnp.square(values / safe_scale[None])))


def log_mean_exp(x: chex.Array) -> jax.Array:
    """Returns log (1/n) Σᵢ exp xᵢ along the first axis, in at least float32.

    Likelihoods close to 1 keep their precision: the log-likelihoods -1e-10 and -3e-10
    give -2e-10.
    """
    x = at_least_float32(x)
    highest = jax.lax.stop_gradient(x.max(axis=0))
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    gaps = x - highest[None]
    below_one = pairwise_mean(jnp.expm1(gaps))
    is_small = below_one > -0.5
    log_of_mean = jnp.log(jnp.where(is_small, 1, pairwise_mean(jnp.exp(gaps))))
    return highest + jnp.where(
        is_small, jnp.log1p(jnp.where(is_small, below_one, 0)), log_of_mean
    )


@jax.jit
def average_sampled_log_likelihood(x: chex.Array) -> jax.Array:
    """Log of the mean likelihood: log (1/n) Σᵢ exp xᵢ, without overflow.

    >>> import numpy as np
    >>> from enn import metrics
    >>> float(metrics.average_sampled_log_likelihood(np.array([-1000.0, -1000.0])))
    -1000.0
    >>> likelihoods = np.array([0.9, 0.1])
    >>> round(float(metrics.average_sampled_log_likelihood(np.log(likelihoods))), 3)
    -0.693

    Args:
      x: log-likelihoods, of any shape.

    Returns:
      A scalar, in at least float32; −∞ if all entries are.
    """
    return log_mean_exp(jnp.ravel(x))
