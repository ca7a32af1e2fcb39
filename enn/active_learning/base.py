"""Protocols of active learning: which unlabelled rows to ask a label for."""

import abc
from typing import Protocol, runtime_checkable

import chex

from enn import base
from enn.datasets.base import ArrayBatch
from enn.networks.forwarders import EnnBatchFwd

PriorityOutput = tuple[chex.Array, dict[str, base.AnyArray]]
"""Scores `[batch]`, higher for rows more wanted, and metrics by name."""


class ActiveLearner(abc.ABC):
    """Selects rows from a pool."""

    @abc.abstractmethod
    def sample_batch(
        self,
        params: base.AnyTree,
        state: base.AnyTree,
        batch: ArrayBatch,
        key: chex.PRNGKey,
    ) -> ArrayBatch:
        """Returns the rows of the pool `batch` that are most wanted."""

    @property
    @abc.abstractmethod
    def acquisition_size(self) -> int:
        """Number of rows to select."""

    @acquisition_size.setter
    @abc.abstractmethod
    def acquisition_size(self, size: int) -> None:
        """Sets the number of rows to select."""


@runtime_checkable
class PriorityFn(Protocol):
    """Scores the rows of a batch by how much they are wanted."""

    def __call__(
        self,
        params: base.AnyTree,
        state: base.AnyTree,
        batch: ArrayBatch,
        key: chex.PRNGKey,
        /,
    ) -> PriorityOutput:
        """Returns scores `[batch]`, higher for rows more wanted, and metrics."""
        ...


@runtime_checkable
class PriorityFnCtor(Protocol):
    """Makes a priority function from the forward pass of a network."""

    def __call__(self, enn_batch_fwd: EnnBatchFwd[chex.Array], /) -> PriorityFn:
        """Returns a priority function of the network's parameters."""
        ...


@runtime_checkable
class PerExamplePriority(Protocol):
    """Scores the rows of a batch from the network's predictions."""

    def __call__(
        self, logits: base.AnyArray, labels: base.AnyArray, key: chex.PRNGKey, /
    ) -> chex.Array:
        """Returns scores `[batch]`, higher for rows more wanted.

        Args:
          logits: `[num_enn_samples, batch, num_classes]`.
          labels: `[batch, 1]`; only some priorities look at them.
          key: random key; only some priorities use it.
        """
        ...
