"""Batch normalisation that can be initialised in evaluation mode."""

from typing import Any

import chex
import haiku as hk
import jax.numpy as jnp


class BatchNorm(hk.BatchNorm):
    """`hk.BatchNorm` whose `init` does not depend on `is_training`.

    Evaluation reads the running statistics, which Haiku creates in training alone;
    here `init` creates them in both modes, with the same names and values. Evaluation
    with `test_local_stats` needs none and creates none.
    """

    def __call__(  # pyrefly: ignore[bad-override]
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> Any:
        """Returns the normalised `inputs`, `[batch, height, width, channels]`."""
        creates_statistics = hk.running_init() and not test_local_stats
        return super().__call__(
            jnp.asarray(inputs), is_training or creates_statistics, test_local_stats
        )
