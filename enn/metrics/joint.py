"""Metrics of joint predictions: several rows at once, under one epistemic index.

The joint prediction for labels y₁ … y_τ is (1/S) Σₛ Πₜ softmax(f(xₜ, zₛ))_yₜ. Unlike
marginal ones, joint predictions tell what more data could resolve from what it could
not (Osband et al., 2021, https://arxiv.org/abs/2107.08924). For random inputs this
needs a large τ; dyadic sampling, τ labels at two random anchors, shows it at τ = 10
(Osband et al., 2022, https://arxiv.org/abs/2202.13509).
"""

import functools

import chex
import jax
import jax.numpy as jnp

from enn import _checks, _sharding
from enn.metrics.base import (
    ArrayMetric,
    average_sampled_log_likelihood,
    pairwise_sum,
)
from enn.metrics.likelihood import (
    average_log_likelihood,
    check_not_empty,
    label_log_likelihoods,
)


def split_rows(array: jax.Array, axis: int, size: int) -> jax.Array:
    """Splits `axis` into `[num_groups, size]`, in order, dropping the remainder.

    Raises:
      ValueError: if there are fewer than `size` rows.
    """
    rows = array.shape[axis]
    if rows < size:
        raise ValueError(f"batch must have at least {size} rows, got {rows}.")
    kept = jax.lax.slice_in_dim(array, 0, rows - rows % size, axis=axis)
    return kept.reshape(*array.shape[:axis], -1, size, *array.shape[axis + 1 :])


def reshape_to_smaller_batches(
    logits: chex.Array, labels: chex.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Cuts a batch into consecutive smaller ones, dropping the rows that remain.

    Args:
      logits: `[num_enn_samples, batch, num_classes]`.
      labels: `[batch, 1]`.
      batch_size: rows of each smaller batch, at most `batch`.

    Returns:
      `[batch // batch_size, num_enn_samples, batch_size, num_classes]` logits and
      `[batch // batch_size, batch_size, 1]` labels.

    Raises:
      ValueError: unless `batch_size` is an integer >= 1, or there are fewer rows.
    """
    _checks.positive_int("batch_size", batch_size)
    small_logits = split_rows(jnp.asarray(logits), 1, batch_size).swapaxes(0, 1)
    column = _checks.as_column("labels", jnp.asarray(labels))
    return small_logits, split_rows(column, 0, batch_size)


def calculate_joint_ll(logits: chex.Array, labels: chex.Array) -> jax.Array:
    """Joint log-likelihood of a whole batch, in nats.

    log (1/S) Σₛ Πₜ softmax(logits_st)_yₜ: a sum over the τ rows, not divided by τ.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924.

    >>> import numpy as np
    >>> from enn import metrics
    >>> coins = np.log([[[0.9, 0.1]] * 2, [[0.1, 0.9]] * 2])  # One of two biased coins.
    >>> heads = np.array([[0], [0]])
    >>> likelihood = np.exp(metrics.calculate_joint_ll(coins, heads))
    >>> round(float(likelihood), 3)  # ½ (0.9² + 0.1²), and ½ · ½ if independent.
    0.41

    Args:
      logits: `[num_enn_samples, tau, num_classes]`.
      labels: integer classes `[tau, 1]`.

    Returns:
      A scalar.

    Raises:
      TypeError: unless the labels are integers.
      ValueError: if a label is out of range, or a shape is wrong.
    """
    check_not_empty("logits", logits)
    return average_sampled_log_likelihood(
        pairwise_sum(label_log_likelihoods(logits, labels), 1)
    )


@functools.partial(jax.jit, static_argnames="tau")
def average_joint_nll(log_likelihoods: jax.Array, tau: int) -> jax.Array:
    """Joint negative log-likelihood, mean over consecutive groups of `tau` rows.

    Args:
      log_likelihoods: log-likelihood of each row, `[num_enn_samples, batch]`.
      tau: rows of a group; rows that remain are dropped.

    Returns:
      A scalar.
    """
    groups = split_rows(log_likelihoods, 1, tau)
    return -average_log_likelihood(pairwise_sum(groups, 2))


def make_nll_joint_calculator(tau: int = 10) -> ArrayMetric:
    """Returns the joint negative log-likelihood of `tau` rows at a time, in nats.

    The mean over consecutive groups of `tau` rows of `-calculate_joint_ll`; not
    divided by `tau`. Rows that remain are dropped, so a mean over batches weighted by
    size is that of one big batch where `tau` divides each of them.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924.

    >>> import numpy as np
    >>> from enn import metrics
    >>> coins = np.log([[[0.9, 0.1]] * 2, [[0.1, 0.9]] * 2])  # One of two biased coins.
    >>> heads = np.array([[0], [0]])
    >>> joint = metrics.make_nll_joint_calculator(tau=2)
    >>> round(float(joint(coins, heads)), 3)  # -log ½ (0.9² + 0.1²)
    0.892

    Args:
      tau: number of rows predicted jointly.

    Returns:
      A calculator; raises ValueError for a batch of fewer than `tau` rows.

    Raises:
      ValueError: unless `tau` is an integer >= 1.
    """
    _checks.positive_int("tau", tau)

    def calculator(logits: chex.Array, labels: chex.Array) -> jax.Array:
        check_not_empty("logits", logits)
        return average_joint_nll(label_log_likelihoods(logits, labels), tau)

    return calculator


def make_nll_polyadic_calculator(
    tau: int = 10, kappa: int = 2, key: chex.PRNGKey | None = None
) -> ArrayMetric:
    """Returns the polyadic negative log-likelihood, in nats; dyadic for kappa = 2.

    Each consecutive group of `kappa` rows holds the anchors of one term: `tau` rows
    are drawn from it with replacement, and predicted jointly. The result is the mean
    over groups, not divided by `tau` (Osband et al., 2022,
    https://arxiv.org/abs/2202.13509).

    >>> import numpy as np
    >>> from enn import metrics
    >>> coins = np.log([[[0.9, 0.1]] * 2, [[0.1, 0.9]] * 2])  # One of two biased coins.
    >>> heads = np.array([[0], [0]])
    >>> dyadic = metrics.make_nll_polyadic_calculator(tau=10, kappa=2)
    >>> round(float(dyadic(coins, heads)), 3)  # -log ½ (0.9¹⁰ + 0.1¹⁰)
    1.747

    Args:
      tau: number of rows predicted jointly.
      kappa: number of anchors they are drawn from.
      key: random key of the draws, the same at every call. If None, the draws depend
        on the labels alone: the seed is Σ_b y_b · b · 10 max(y), modulo 2³². Numbers
        follow the original `enn`; a change of the order of the rows, or of one
        label, then changes all draws.

    Returns:
      A compiled calculator; raises ValueError for a batch of fewer than `kappa` rows.

    Raises:
      ValueError: unless `tau` and `kappa` are integers >= 1.
    """
    _checks.positive_int("tau", tau)
    _checks.positive_int("kappa", kappa)

    def calculator(logits: chex.Array, labels: chex.Array) -> jax.Array:
        check_not_empty("logits", logits)
        log_likelihoods = label_log_likelihoods(logits, labels)
        draws_key = _key_from_labels(labels) if key is None else key
        return _polyadic_nll(log_likelihoods, draws_key, tau, kappa)

    return calculator


@_sharding.allow_explicit_axes
@jax.jit
def _key_from_labels(labels: chex.Array) -> chex.PRNGKey:
    values = jnp.ravel(labels).astype(jnp.int32)
    offsets = jnp.arange(len(values), dtype=jnp.int32) * values.max() * 10
    return jax.random.PRNGKey(jnp.sum(values * offsets, dtype=jnp.int32))


@functools.partial(jax.jit, static_argnames=("tau", "kappa"))
def _polyadic_nll(
    log_likelihoods: jax.Array, key: chex.PRNGKey, tau: int, kappa: int
) -> jax.Array:
    groups = split_rows(log_likelihoods, 1, kappa)
    keys = jax.random.split(key, groups.shape[1])

    def draw(group_key: chex.PRNGKey) -> jax.Array:
        return jax.random.randint(group_key, [tau], 0, kappa, dtype=jnp.int32)

    drawn = jnp.take_along_axis(groups, jax.vmap(draw)(keys)[None], axis=2)
    return -average_log_likelihood(pairwise_sum(drawn, 2))
