"""Batches from what users have: pairs, dicts, loaders, data sets of Hugging Face."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from enn import _checks
from enn.datasets.base import ArrayBatch
from enn.datasets.in_memory import BatchIterator, make_batch_iterator

Data = ArrayBatch | Iterable[Any]
"""What an experiment trains on; see `as_batches`."""

_EXPECTED = (
    "A batch must be an ArrayBatch, a pair (x, y), or a dict with the keys 'x' and 'y' "
    "or 'image' and 'label'"
)
_NAMES = {"image": "x", "img": "x", "label": "y"}
_FIELDS = ("x", "y", "data_index", "weights", "extra")


def as_batches(data: Any) -> Iterator[Any]:
    """Returns an endless iterator of batches over what a user has as data.

    An iterator is returned as it is, and must be endless. A loader that can be iterated
    over anew, such as PyTorch's or a list of batches, starts again whenever it ends.
    Arrays in memory, as an `ArrayBatch`, a pair or a dict, are one batch of all rows.

    >>> import numpy as np
    >>> from enn.supervised.batches import as_batch, as_batches
    >>> batches = as_batches((np.zeros([3, 2]), np.arange(3)))
    >>> next(batches).y.shape
    (3, 1)
    >>> loader = [(np.zeros([2, 2]), np.ones(2)), {"x": np.zeros([1, 2]), "y": [5]}]
    >>> [as_batch(batch).y.tolist() for batch, _ in zip(as_batches(loader), range(3))]
    [[1.0, 1.0], [5], [1.0, 1.0]]

    Args:
      data: see above; the batches are what `as_batch` takes.

    Raises:
      TypeError: for anything else.
      ValueError: for arrays without rows.
    """
    if hasattr(data, "__next__"):
        return data
    # With a list among the arrays as well, for which `as_batch` has an error.
    is_pair = type(data) is tuple and any(hasattr(part, "shape") for part in data)
    if isinstance(data, Mapping) or is_pair:
        return make_batch_iterator(as_batch(data))
    if not hasattr(data, "__iter__") or hasattr(data, "dtype"):
        raise TypeError(
            "dataset must be an endless iterator of batches, such as "
            "enn.utils.make_batch_iterator gives, a loader, or arrays as an ArrayBatch "
            f"or a pair (x, y); got {type(data).__name__}."
        )
    return itertools.chain.from_iterable(_passes(data))


def _passes(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Yields passes over the data, until one is empty."""
    while True:
        batches = iter(loader)
        for first in batches:
            yield itertools.chain([first], batches)
            break
        else:
            return


def as_batch(batch: Any) -> Any:
    """Returns a pair or a dict as an `ArrayBatch` of arrays.

    Tensors of other libraries become NumPy arrays. An axis of devices, which image data
    sets give by default, becomes one with that of rows: experiments share rows out over
    a mesh themselves. Trees of other kinds are returned as they are, for losses that
    take them.

    Args:
      batch: `ArrayBatch`, `(x, y)`, or a dict of its fields or of `image` and `label`.

    Raises:
      ValueError: for tuples of another length, dicts with other keys and rows that are
        not arrays.
    """
    if isinstance(batch, ArrayBatch):
        return _merge_devices(batch) if _has_devices(batch) else batch
    if isinstance(batch, Mapping):
        fields = {_NAMES.get(str(name), name): batch[name] for name in batch}
        if not {"x", "y"} <= set(fields) <= set(_FIELDS):
            raise ValueError(f"{_EXPECTED}; got the keys {list(batch)}.")
    elif type(batch) in (tuple, list):
        if len(batch) != 2:
            raise ValueError(f"{_EXPECTED}; got a {_kind(batch)} of {len(batch)}.")
        fields = dict(zip(_FIELDS, batch, strict=False))
    else:
        return batch
    arrays = {k: _to_arrays(k, v) for k, v in fields.items() if v is not None}
    if "y" not in arrays or not arrays["y"].ndim:
        raise ValueError(
            "y must be [batch, 1] or [batch], got a single example: group examples "
            "into batches, as batch(32) does for data sets of Hugging Face."
        )
    return ArrayBatch(**arrays)


def _has_devices(batch: ArrayBatch) -> bool:
    index = batch.data_index  # [devices, batch], or [batch, 1] or [batch]
    return index is not None and len(index.shape) == 2 and index.shape[1] > 1


def _merge_devices(batch: ArrayBatch) -> ArrayBatch:
    leaves = jax.tree.leaves(batch)
    lead = jax.tree.leaves(batch.data_index)[0].shape
    if any(np.shape(leaf)[:2] != lead for leaf in leaves):
        raise ValueError(
            f"The batches have an axis of devices, with data_index {list(lead)}, and "
            "rows on another axis of x: make the data set with "
            "train_data_parallelism=False, and without a double transpose."
        )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)


def _to_arrays(name: str, value: Any) -> Any:
    if name != "x" and isinstance(value, list):
        return np.asarray(value)

    _checks.arrays(name, value)
    return jax.tree.map(_checks.as_array, value)


def _kind(value: Any) -> str:
    return type(value).__name__


class InMemorySideBySide(Iterator[ArrayBatch]):
    """The batches of several iterators over arrays in memory, at once.

    A batch has them stacked on a first axis; rows are counted through.

    Attributes:
      data: the rows of all, each iterator's after those of the one before.
      batch_size: number of rows of all their batches together.

    Args:
      datasets: iterators with batches of one size, and rows of one shape.
    """

    is_endless = True

    def __init__(self, datasets: Sequence[BatchIterator]):
        self._datasets = datasets
        self.batch_size = sum(dataset.batch_size for dataset in datasets)
        sizes = [len(dataset.data.y) for dataset in datasets]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self.data = jax.tree.map(
            lambda *leaves: np.concatenate(leaves), *[d.data for d in datasets]
        )

    def __next__(self) -> ArrayBatch:
        rows = self.take_rows(1).reshape(len(self._datasets), -1)
        return jax.tree.map(lambda leaf: leaf[rows], self.data)

    def take_rows(self, num_batches: int) -> np.ndarray:
        """Returns which rows the next batches hold, `[num_batches, batch_size]`."""
        rows = [
            start + dataset.take_rows(num_batches)
            for start, dataset in zip(self._starts, self._datasets, strict=True)
        ]
        return np.concatenate(rows, axis=1)


def side_by_side(datasets: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """Returns an iterator over the batches of several at once.

    Returns:
      An iterator whose batches are theirs, stacked on a new first axis; of iterators
      over arrays in memory an `InMemorySideBySide`.

    Raises:
      ValueError: if batches of the data sets differ in structure or shape.
    """
    if all(type(dataset) is BatchIterator for dataset in datasets):
        in_memory: Any = datasets
        _check_alike([(d.batch_size, [d.data]) for d in in_memory], rows=True)
        return InMemorySideBySide(in_memory)
    return map(_stack, zip(*datasets, strict=False))


def _stack(batches: Sequence[Any]) -> Any:
    batches = [as_batch(batch) for batch in batches]
    _check_alike(batches)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _check_alike(trees: Sequence[Any], rows: bool = False) -> None:
    """Raises ValueError unless all trees have the same structure and shapes.

    Args:
      trees: what to compare with the first.
      rows: whether the number of rows may differ.
    """

    def signature(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        shapes = [np.shape(leaf)[rows:] if np.ndim(leaf) else leaf for leaf in leaves]
        return structure, shapes

    first = signature(trees[0])
    for i, tree in enumerate(trees):
        if signature(tree) != first:
            raise ValueError(
                "The data sets of all runs must have batches of the same fields and "
                f"shapes; those of run {i} have {signature(tree)[1]}, and those of "
                f"run 0 have {first[1]}."
            )


def first_batch(dataset: Iterator[Any]) -> Any:
    """Returns the first training batch, with inputs `x`.

    Raises:
      ValueError: if there is none.
      TypeError: if it has no `x`.
    """
    try:
        batch = as_batch(next(dataset))
    except StopIteration:
        raise ValueError(
            "The training data set is empty: it has no first batch."
        ) from None
    if not hasattr(batch, "x"):
        raise TypeError(f"{_EXPECTED}, or init_x must be given; got a {_kind(batch)}.")
    return batch


def next_eval_batch(name: str, dataset: Iterator[Any]) -> Any:
    """Returns the next batch of an evaluation data set.

    A pass over the data that can `restart`, as those of the image data sets, does so.

    Raises:
      RuntimeError: if another one has ended.
    """
    try:
        return as_batch(next(dataset))
    except StopIteration:
        restart = getattr(dataset, "restart", None)
        if callable(restart):
            restart()
            return as_batch(next(dataset))
        raise RuntimeError(
            f"The evaluation data set {name!r} has ended. Evaluation data must be "
            "endless, such as itertools.cycle of its batches."
        ) from None


class DatasetEndedError(StopIteration):
    """A training data set has ended."""

    def __init__(self, step: int):
        super().__init__(
            f"A training data set ended after step {step}. Training data must be "
            "endless, such as enn.utils.make_batch_iterator."
        )
