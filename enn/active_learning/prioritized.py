"""Selection of the rows of highest priority."""

import functools
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.active_learning import priorities
from enn.active_learning.base import ActiveLearner, PriorityFnCtor
from enn.datasets.base import ArrayBatch
from enn.networks.forwarders import EnnBatchFwd

Tree = TypeVar("Tree")


class PrioritizedBatcher(ActiveLearner):
    """Selects the `acquisition_size` rows of highest priority.

    Rows are scored one by one, so that the choice is greedy: with `"bald"` it may hold
    redundant rows, unlike the joint choice of BatchBALD (Kirsch et al., 2019,
    https://arxiv.org/abs/1906.08158).

    >>> import jax, numpy as np
    >>> from enn import datasets
    >>> from enn.active_learning import PrioritizedBatcher, get_priority_fn_ctor
    >>> def forward(params, state, inputs, key=None):  # The inputs are the logits.
    ...     return inputs[None]
    >>> batcher = PrioritizedBatcher(forward, 2, get_priority_fn_ctor("entropy"))
    >>> x = np.array([[9.0, 0.0], [0.5, 0.0], [0.0, 0.0]])  # Sure, less so, not at all
    >>> pool = datasets.ArrayBatch(x=x, y=np.zeros([3, 1], int))
    >>> batcher.sample_batch({}, {}, pool, jax.random.key(0)).x[:, 0].tolist()
    [0.5, 0.0]
    """

    def __init__(
        self,
        enn_batch_fwd: EnnBatchFwd[chex.Array],
        acquisition_size: int = 64,
        priority_fn_ctor: PriorityFnCtor | None = None,
    ):
        """Creates the batcher.

        Args:
          enn_batch_fwd: predictions of the network.
          acquisition_size: number of rows to select.
          priority_fn_ctor: makes the priority function; uniform priority if None.

        Raises:
          ValueError: unless `acquisition_size` is an integer >= 1.
        """
        if priority_fn_ctor is None:
            priority_fn_ctor = priorities.get_priority_fn_ctor("uniform")
        self._priority_fn = priority_fn_ctor(enn_batch_fwd)
        self.acquisition_size = acquisition_size

    @property
    def acquisition_size(self) -> int:
        """Number of rows to select.

        A compiled `sample_batch` keeps the number it was compiled with.

        Raises:
          ValueError: unless set to an integer >= 1.
        """
        return self._acquisition_size

    @acquisition_size.setter
    def acquisition_size(self, size: int) -> None:
        self._acquisition_size = _checks.positive_int("acquisition_size", size)

    def sample_batch(
        self,
        params: base.AnyTree,
        state: base.AnyTree,
        batch: ArrayBatch,
        key: chex.PRNGKey,
    ) -> ArrayBatch:
        """Returns the rows of highest priority, in rising order of priority.

        Among rows of equal priority, later ones are preferred. Inside `jax.jit`, where
        priorities are traced and cannot be checked, NaN ranks lowest.

        Args:
          params: parameters of the network.
          state: state of the network.
          batch: the pool to select from.
          key: random key, passed to the priority function as it is.

        Returns:
          `acquisition_size` rows, or all if there are fewer.

        Raises:
          ValueError: if a priority is NaN.
        """
        return get_at_index(batch, self.select(params, state, batch, key))

    def select(
        self,
        params: base.AnyTree,
        state: base.AnyTree,
        batch: ArrayBatch,
        key: chex.PRNGKey,
    ) -> jax.Array:
        """Returns which rows `sample_batch` gives, `[acquisition_size]`."""
        scores, _ = self._priority_fn(params, state, batch, key)
        if _checks.is_concrete(scores) and np.isnan(scores).any():
            row = np.flatnonzero(np.isnan(scores))[0]
            ids = batch.data_index
            name = "" if ids is None else f" (data_index {np.ravel(ids)[row]})"
            raise ValueError(
                f"priorities must not be NaN, got NaN in row {row} of {np.size(scores)}"
                f"{name}: check the network's predictions there."
            )
        return _highest(scores, self.acquisition_size)


def get_at_index(t: Tree, idx: chex.Array) -> Tree:
    """Indexes the first axis of every leaf; scalar leaves stay as they are.

    Args:
      t: a pytree of arrays.
      idx: which rows, `[num_rows]`.
    """
    return jax.tree.map(lambda x: x if np.ndim(x) == 0 else x[idx], t)


@functools.partial(jax.jit, static_argnames="size")
def _highest(scores: chex.Array, size: int) -> jax.Array:
    """The rows of highest scores, in rising order."""
    return jnp.argsort(jnp.where(jnp.isnan(scores), -jnp.inf, scores))[-size:]
