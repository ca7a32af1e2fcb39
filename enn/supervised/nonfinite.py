"""Steps whose loss or parameters are NaN or infinite."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


class NonFiniteError(FloatingPointError):
    """A step had a loss, or made parameters, that are NaN or infinite.

    Attributes:
      step: the number of that step. The experiment stands after the step before it,
        with the last good parameters.
    """

    def __init__(self, step: int, reason: str):
        super().__init__(
            f"Step {step} {reason}. The experiment keeps what it was after step "
            f"{step - 1}; train(..., on_nonfinite='continue') goes on regardless."
        )
        self.step = step


def all_finite(tree: Any) -> chex.Array:
    """Returns whether no number of `tree` is NaN or infinite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.array(finite, bool).all()


def num_finite_steps(losses: Sequence[np.ndarray], num_steps: int) -> int:
    """Returns how many of the first `num_steps` steps come before a bad loss.

    Args:
      losses: for every trainer, `[>= num_steps]` losses.
      num_steps: how many steps to look at.
    """
    finite = np.ones(num_steps, bool)
    for loss in losses:
        finite &= np.isfinite(loss[:num_steps])
    return num_steps if finite.all() else int(finite.argmin())
