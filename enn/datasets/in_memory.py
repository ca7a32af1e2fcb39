"""Batches from arrays in memory, shuffled anew every epoch."""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from enn import _checks
from enn.datasets import base
from enn.datasets.base import Positioned

_ROWS_PER_BLOCK = 4096


class BatchIterator(Positioned, Iterator[base.ArrayBatch]):
    """Endless batches of rows drawn without replacement, epoch after epoch.

    Each epoch is a fresh permutation of the rows that depends only on the seed, the
    epoch and the number of rows. The endless concatenation of epochs is cut into
    batches of `batch_size`: a batch may straddle epochs or exceed the data, and none
    is short. Leaves are NumPy arrays with the dtypes of the data.

    >>> import numpy as np
    >>> from enn import datasets, utils
    >>> data = datasets.ArrayBatch(x=np.arange(4.0)[:, None], y=np.zeros(4))
    >>> batches = utils.make_batch_iterator(data, batch_size=2)
    >>> position, rows = batches.state(), next(batches).data_index
    >>> batches.restore(position)
    >>> bool((next(batches).data_index == rows).all())
    True

    Attributes:
      data: all rows, as the batches hold them: `y` of rank 1 became `[num_data, 1]`,
        a missing `data_index` counts the rows, missing `weights` are ones.
      batch_size: number of rows of a batch.
      is_endless: True; fits that need each row once refuse it.
    """

    is_endless = True

    def __init__(
        self,
        data: base.ArrayBatch,
        batch_size: int | None = None,
        seed: int = 0,
        check_finite: bool = False,
    ):
        """Takes the arguments of `make_batch_iterator`."""
        self.data = _complete(data)
        self._num_data = len(self.data.y)
        if check_finite:
            _check_finite(self.data)
        self.batch_size = _batch_size(batch_size) or self._num_data
        self._seed = operator.index(seed)
        self._leaves, self._treedef = jax.tree.flatten(self.data)
        # Permutations come in blocks of epochs: one generator serves many of them.
        self._epochs_per_block = max(1, _ROWS_PER_BLOCK // self._num_data)
        self._block = -1
        self._order = np.empty(0, np.int64)
        self._position = 0

    def __next__(self) -> base.ArrayBatch:
        return self._gather(self._next_rows(self.batch_size))

    def take(self, num_batches: int) -> base.ArrayBatch:
        """Returns the next batches stacked: every leaf is `[num_batches, batch, ...]`.

        Equals `num_batches` calls of `next`, in one copy.

        Raises:
          ValueError: unless `num_batches` is an integer >= 1.
        """
        return self._gather(self.take_rows(num_batches))

    def take_rows(self, num_batches: int) -> np.ndarray:
        """Returns which rows the next batches hold, `[num_batches, batch]`.

        Raises:
          ValueError: unless `num_batches` is an integer >= 1.
        """
        _checks.positive_int("num_batches", num_batches)
        rows = self._next_rows(num_batches * self.batch_size)
        return rows.reshape(num_batches, self.batch_size)

    def restore(self, state: dict[str, int]) -> None:
        """Goes to the position of `state`, at the cost of one block of epochs.

        Raises:
          ValueError: if `state` is of an iterator with another seed or other data.
        """
        self._position = self._position_of(state)

    def _gather(self, rows: np.ndarray) -> base.ArrayBatch:
        return self._treedef.unflatten([leaf.take(rows, 0) for leaf in self._leaves])

    def _next_rows(self, count: int) -> np.ndarray:
        """The numbers of the next `count` rows."""
        parts = []
        missing = count
        while missing:
            block, start = divmod(
                self._position, self._epochs_per_block * self._num_data
            )
            if block != self._block:
                self._block, self._order = block, self._epochs(block)
            parts.append(self._order[start : start + missing])
            self._position += len(parts[-1])
            missing -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _epochs(self, block: int) -> np.ndarray:
        """The permutations of all epochs of one block, one after the other."""
        rng = np.random.default_rng([self._seed % 2**64, block])
        rows = np.tile(np.arange(self._num_data), (self._epochs_per_block, 1))
        return rng.permuted(rows, axis=1).ravel()


def make_batch_iterator(
    data: base.ArrayBatch,
    batch_size: int | None = None,
    seed: int = 0,
    check_finite: bool = False,
) -> BatchIterator:
    """Returns endless batches of `data`, reshuffled every epoch.

    >>> import numpy as np
    >>> from enn import datasets, utils
    >>> data = datasets.ArrayBatch(x=np.arange(4.0)[:, None], y=np.zeros(4))
    >>> batches = utils.make_batch_iterator(data, batch_size=2, seed=0)
    >>> epoch = [next(batches).data_index.ravel().tolist() for _ in range(2)]
    >>> sorted(sum(epoch, []))  # Each row once
    [0, 1, 2, 3]

    Args:
      data: arrays with one row an example, also in `extra`. `y` of shape
        `[num_data]` becomes `[num_data, 1]`; `data_index` defaults to the row
        number, `weights` to ones.
      batch_size: number of rows of a batch; None or 0 means all of them. May exceed
        the data.
      seed: fixes the order of the rows.
      check_finite: whether to look for NaN and infinity in `x` and `y`.

    Raises:
      ValueError: if there are no rows, fields differ in their number of rows,
        `batch_size` is not an integer >= 0, or a checked value is not finite.
    """
    return BatchIterator(data, batch_size, seed, check_finite)


def process_slice() -> slice:
    """Returns the rows that this process reads: every `jax.process_count()`-th."""
    return slice(jax.process_index(), None, jax.process_count())


def process_shard(data: base.ArrayBatch) -> base.ArrayBatch:
    """Returns the rows of `data` for this of several processes to train on.

    They are every `jax.process_count()`-th row from `jax.process_index()` on, for
    processes that `jax.distributed.initialize` joined; all rows where there is one.
    `data_index` still numbers the rows of all, which tells those of different
    processes apart.

    >>> import numpy as np
    >>> from enn import datasets, utils
    >>> data = datasets.ArrayBatch(x=np.zeros([3, 1]), y=np.zeros(3))
    >>> shard = utils.process_shard(data)  # Of one process, all rows
    >>> shard.data_index.ravel().tolist()
    [0, 1, 2]

    Args:
      data: arrays with one row an example, the same in all processes.

    Raises:
      ValueError: as `make_batch_iterator`, and if there are fewer rows than processes.
    """
    data = _complete(data)
    if len(data.y) < jax.process_count():
        raise ValueError(
            f"data must have a row for each of the {jax.process_count()} processes, "
            f"got {len(data.y)}."
        )
    return jax.tree.map(lambda leaf: leaf[process_slice()], data)


def _complete(data: base.ArrayBatch) -> base.ArrayBatch:
    if data.y is None:
        raise ValueError("data must have y, one target or label a row, got None.")
    _checks.arrays("x", data.x)
    # A list of labels is one array; a list in x is a tree of inputs.
    data = jax.tree.map(np.asarray, dataclasses.replace(data, y=np.asarray(data.y)))
    y = data.y[:, None] if np.ndim(data.y) == 1 else data.y
    if y.ndim == 0 or y.size == 0:
        raise ValueError(f"data must have rows, got y of shape {np.shape(y)}.")
    index, weights = data.data_index, data.weights
    data = dataclasses.replace(
        data,
        y=y,
        data_index=np.arange(len(y))[:, None] if index is None else index,
        weights=np.ones([len(y), 1]) if weights is None else weights,
    )
    _check_rows(data, len(y))
    return data


def _check_rows(data: base.ArrayBatch, num_data: int) -> None:
    for path, leaf in jax.tree.leaves_with_path(data):
        if leaf.shape[:1] != (num_data,):
            raise ValueError(
                f"{_name(path)} must have {num_data} rows as y has, "
                f"got shape {list(leaf.shape)}."
            )


def _check_finite(data: base.ArrayBatch) -> None:
    for path, leaf in jax.tree.leaves_with_path({"x": data.x, "y": data.y}):
        finite = np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{_name(path)} must be finite, got NaN or infinity in row "
                f"{int(finite.argmin())}."
            )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _batch_size(batch_size: int | None) -> int:
    try:
        size = operator.index(0 if batch_size is None else batch_size)
    except TypeError:
        size = -1
    if size < 0 or isinstance(batch_size, bool):
        raise ValueError(
            "batch_size must be an integer >= 0, or None for all rows, "
            f"got {batch_size!r}."
        )
    return size
