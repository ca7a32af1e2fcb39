"""Temperature scaling: one number that makes a classifier as sure as it should be."""

import functools

import chex
import jax
import jax.numpy as jnp

from enn.metrics.base import at_least_float32
from enn.metrics.joint import make_nll_joint_calculator

_LEAST, _MOST, _GRID_SIZE = 0.01, 100.0, 200


def fit_temperature(logits: chex.Array, labels: chex.Array, tau: int = 1) -> float:
    """Returns the temperature with the least negative log-likelihood.

    T minimises - mean log (1/S) Σₛ Πₜ softmax(f_st / T)_yₜ, over T in [0.01, 100]: the
    best of a grid of 200 in log T, then bisection of the derivative (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599, here for many index samples).
    `networks.scale_enn_output(enn, 1 / T)` is the calibrated network; its joint
    predictions are scaled with it.

    >>> import numpy as np
    >>> from enn import calibration
    >>> logits = np.tile([4.0, 0.0], [1, 10, 1])
    >>> labels = np.array([0] * 8 + [1] * 2)
    >>> round(calibration.fit_temperature(logits, labels), 4)  # 80 % sure: 4 / log 4.
    2.8854

    Args:
      logits: of rows that were not trained on, `[num_enn_samples, batch, num_classes]`.
      labels: integer classes, `[batch, 1]`.
      tau: rows of each joint prediction; consecutive rows belong together, as for
        `metrics.make_nll_joint_calculator`, and those that remain are left out.

    Raises:
      TypeError: unless the labels are integers.
      ValueError: if a logit is not finite, a label is out of range, a shape is wrong,
        or there are fewer rows than `tau`; if no temperature in the range is best: with
        all labels predicted right it is too low, with predictions no better than chance
        too high.
    """
    joint_nll = make_nll_joint_calculator(tau)
    logits = at_least_float32(logits)
    if not jnp.isfinite(logits).all():
        raise ValueError("logits must be finite.")

    joint_nll(logits, labels)  # Checks the labels, which compiled code cannot.

    # Data are arguments: with constants, XLA would compute as it compiles.
    def nll(log_t: jax.Array, logits: jax.Array, labels: chex.Array) -> jax.Array:
        return jnp.asarray(joint_nll(logits / jnp.exp(log_t), labels))

    data = {"logits": logits, "labels": jnp.asarray(labels)}
    grid = jnp.linspace(jnp.log(_LEAST), jnp.log(_MOST), _GRID_SIZE, dtype=logits.dtype)
    best = int(jnp.argmin(jax.lax.map(functools.partial(nll, **data), grid)))
    slope = functools.partial(jax.jit(jax.grad(nll)), **data)
    if best in (0, _GRID_SIZE - 1) or not (
        slope(grid[best - 1]) < 0 < slope(grid[best + 1])
    ):
        if slope(grid[0]) == slope(grid[-1]) == 0:
            reason = "are equally likely at all of them"
        elif best < _GRID_SIZE / 2:
            reason = "are all right, or want a lower one"
        else:
            reason = "are no better than chance, or want a higher one"
        raise ValueError(
            f"No temperature in [{_LEAST}, {_MOST}] is best: the predictions {reason}."
        )

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        rises = slope(middle) > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    ends = (grid[best - 1], grid[best + 1])
    num_halvings = jnp.finfo(grid.dtype).nmant
    low, high = jax.lax.fori_loop(0, num_halvings, halve, ends)
    return float(jnp.exp((low + high) / 2))
