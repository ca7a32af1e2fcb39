"""What every experiment offers."""

import abc
import dataclasses
from typing import Any

import chex

from enn.datasets.base import ArrayBatchIterator
from enn.networks.base import Output


@dataclasses.dataclass(eq=False)
class BaseExperiment(abc.ABC):
    """A network in training. Compares and hashes by identity.

    Attributes:
      dataset: iterator of training batches.
    """

    dataset: ArrayBatchIterator

    @abc.abstractmethod
    def train(self, num_batches: int) -> None:
        """Trains for `num_batches` steps."""

    @abc.abstractmethod
    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the network's output at `inputs`, at the index drawn with `key`."""

    @abc.abstractmethod
    def loss(self, batch: Any, key: chex.PRNGKey) -> chex.Array:
        """Returns the loss on `batch`."""
