"""The shape of data: a batch, an iterator of batches, and a dataset."""

import abc
import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar, dataclass_transform

import chex
import numpy as np

from enn import _checks

Array = np.ndarray | chex.Array
DataIndex = chex.Array
"""Integer ids of the rows of a batch, by which data noise knows them again."""

DatasetDict = dict[str, Array]
"""One raw example as stored: images and labels by name."""


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _by_position_too(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass of chex, which alone takes keyword arguments only."""
    made: Any = chex.dataclass(cls, frozen=True)
    init, signature = made.__init__, inspect.signature(made)

    @functools.wraps(init)
    def init_by_position_too(self: Any, *args: Any, **kwargs: Any) -> None:
        # A dict of the fields, or pairs as for `dict`, are chex's own single argument.
        if len(args) > 1 or (args and (kwargs or hasattr(args[0], "shape"))):
            args, kwargs = (), signature.bind(*args, **kwargs).arguments
        init(self, *args, **kwargs)

    made.__init__ = init_by_position_too
    return made


@_by_position_too
class ArrayBatch:
    """A batch of data: a pytree, and a mapping from field names to values.

    >>> import numpy as np
    >>> from enn import datasets
    >>> batch = datasets.ArrayBatch(np.zeros([3, 2]), np.arange(3))
    >>> batch.replace(y=batch["y"] + 1).y
    array([1, 2, 3])

    Attributes:
      x: inputs, `[batch, ...]`.
      y: targets or labels, `[batch, 1]`.
      data_index: integer ids of the rows, `[batch, 1]`, or None.
      weights: weights of the rows in the loss, `[batch, 1]`, or None.
      extra: further arrays by name.
    """

    x: Any
    y: Any
    data_index: DataIndex | None = None
    weights: Array | None = None
    extra: dict[str, Array] = dataclasses.field(default_factory=dict)

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> Self:
            """Returns a copy with other values of the fields in `changes`."""
            ...

        def keys(self) -> Iterable[str]: ...
        def __iter__(self) -> Iterator[str]: ...
        def __getitem__(self, name: str) -> Any: ...


ArrayBatchIterator = Iterator[ArrayBatch]

DatasetTransformer = Callable[[Any], Any]
"""Maps a `grain.MapDataset` of examples, each an `ArrayBatch`, to another one.

Random access is what shuffles, shards, workers and resuming at a position rest on;
a filter may leave holes. Transformers of the original `enn`, written with TensorFlow,
need to be written anew."""


class Positioned(abc.ABC):
    """An iterator whose order depends on a seed and on how many rows there are.

    Subclasses set `_seed`, `_num_data` and `_position`, the number of rows read.
    """

    _seed: int
    _num_data: int
    _position: int

    @property
    @abc.abstractmethod
    def is_endless(self) -> bool:
        """Whether rows come again, epoch after epoch."""

    def state(self) -> dict[str, int]:
        """Returns the position of the iterator, for `restore`; holds plain ints."""
        return {
            "seed": self._seed,
            "num_data": self._num_data,
            "position": self._position,
        }

    @abc.abstractmethod
    def restore(self, state: dict[str, int]) -> None:
        """Goes to the position of `state`."""

    def _position_of(self, state: dict[str, int]) -> int:
        """The position of `state`, which must be of the same seed and data."""
        own = self.state()
        for name in ("seed", "num_data"):
            if state[name] != own[name]:
                raise ValueError(
                    f"state was saved with {name}={state[name]}, but this iterator "
                    f"has {name}={own[name]}: its order differs."
                )
        return _checks.non_negative_int("position", state["position"])


class SizedSplit(enum.Enum):
    """Splits by their number of examples, which are their values."""

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return self.value


class Dataset(abc.ABC):
    """A dataset for classification, with its training and evaluation batches."""

    @property
    @abc.abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    @abc.abstractmethod
    def eval_input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one evaluation example, without a batch axis."""

    @abc.abstractmethod
    def train_dataset(self) -> ArrayBatchIterator:
        """Returns the training batches, endless."""

    @abc.abstractmethod
    def eval_datasets(self) -> dict[str, ArrayBatchIterator]:
        """Returns one pass over the evaluation batches for each name."""


@dataclasses.dataclass
class DatasetWithTransform(Dataset):
    """A dataset whose streams of examples pass through transformers.

    Attributes:
      train_ds_transformer: applied to the training examples.
      eval_ds_transformers: one evaluation dataset by name for each transformer.
    """

    train_ds_transformer: DatasetTransformer
    eval_ds_transformers: dict[str, DatasetTransformer]


class OodVariant(enum.Enum):
    """Evaluation data by whether its classes occur in training."""

    WHOLE = "eval"
    IN_DISTRIBUTION = "eval_in_dist"
    OUT_DISTRIBUTION = "eval_out_dist"

    @classmethod
    def valid_values(cls) -> list[str]:
        """Returns the names of the variants, in order."""
        return [variant.value for variant in cls]


def identity_transformer(dataset: Any) -> Any:
    """Returns the examples as they are."""
    return dataset


def default_eval_transformers() -> dict[str, DatasetTransformer]:
    """Returns a new dict of transformers that leaves the evaluation data unchanged."""
    return {"eval": identity_transformer}


EVAL_TRANSFORMERS_DEFAULT = dataclasses.field(default_factory=default_eval_transformers)
"""Field of one dataclass; for a second class make a field of its own, since a
class writes its name and type into the field."""
