"""Data that arrive while a network trains: a buffer of the latest rows."""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.datasets.base import ArrayBatch


class Replay(Iterator[ArrayBatch]):
    """A ring of the last `capacity` rows on the device, and endless batches of them.

    Rows are drawn uniformly, with replacement. Rows are numbered from 0 in
    the order in which they were added: a batch's `data_index` holds the numbers of its
    rows, by which bootstrap weights and target noise know them again, and
    `extra["num_steps"]` how many rows have been added.

    An `Experiment` trains on it as on any iterator; it must hold a row by then. Saves
    of the experiment do not hold the rows.

    Attributes:
      capacity: number of rows kept.
      batch_size: number of rows of a batch.
      num_added: number of rows added so far, those that were overwritten too.
      is_endless: True; fits that need each row once refuse it.

    Raises:
      ValueError: unless `capacity` and `batch_size` are integers >= 1.

    >>> import numpy as np
    >>> from enn import supervised
    >>> replay = supervised.Replay(capacity=2, batch_size=8)
    >>> for x in [1.0, 2.0, 3.0]:  # The third row takes the place of the first.
    ...     replay.add(x=np.array([[x]]), y=np.array([10 * x]))
    >>> batch = next(replay)
    >>> sorted(set(batch.y.ravel().tolist())), batch.y.shape
    ([20.0, 30.0], (8, 1))
    >>> sorted(set(batch.data_index.ravel().tolist())), int(batch.extra["num_steps"])
    ([1, 2], 3)
    """

    is_endless = True

    def __init__(self, capacity: int, batch_size: int, seed: int = 0):
        """Creates an empty buffer.

        Args:
          capacity: number of rows to keep.
          batch_size: number of rows of a batch.
          seed: fixes which rows the batches hold.
        """
        self.capacity = _checks.positive_int("capacity", capacity)
        self.batch_size = _checks.positive_int("batch_size", batch_size)
        self.num_added = 0
        self._key = jax.random.key(operator.index(seed))
        self._num_batches = 0
        self._rows: Any = None

    def __len__(self) -> int:
        """Returns the number of rows in the buffer."""
        return min(self.num_added, self.capacity)

    def add(self, x: Any, y: chex.Array) -> None:
        """Adds rows, overwriting the oldest ones once the buffer is full.

        Args:
          x: inputs, `[num_rows, ...]`, an array or a pytree of arrays.
          y: targets or labels, `[num_rows, 1]` or `[num_rows]`.

        Raises:
          ValueError: if the numbers of rows differ, or a row has another shape than
            those before.
        """
        rows = jax.tree.map(_checks.as_array, (x, y))
        rows = (rows[0], _checks.as_column("y", rows[1]))
        num_rows = len(rows[1])
        for leaf in jax.tree.leaves(rows):
            if np.shape(leaf)[:1] != (num_rows,):
                raise ValueError(
                    f"x and y must have the same number of rows, got {num_rows} of y "
                    f"and x of shape {list(np.shape(leaf))}."
                )
        if self._rows is None:
            self._rows = jax.tree.map(self._make_room, rows)
        shapes, room = (_row_shapes(tree) for tree in (rows, self._rows))
        if shapes != room:
            raise ValueError(f"rows must have shapes {room}, got {shapes}.")
        # Of more rows than there is room for, the last ones stay.
        last = jax.tree.map(lambda leaf: leaf[-self.capacity :], rows)
        self.num_added += num_rows
        first = self.num_added - len(last[1])
        places = np.arange(first, self.num_added) % self.capacity
        self._rows = _write(self._rows, last, places)

    def _make_room(self, leaf: chex.Array) -> jax.Array:
        return jnp.zeros((self.capacity, *leaf.shape[1:]), jnp.result_type(leaf))

    def sample(self, key: chex.PRNGKey, batch_size: int | None = None) -> ArrayBatch:
        """Returns rows drawn with `key`.

        Args:
          key: random key.
          batch_size: number of rows; None for that of the buffer.

        Raises:
          ValueError: if the buffer is empty, or unless `batch_size` is an integer >= 1.
        """
        if not self.num_added:
            raise ValueError("Replay holds no rows: call `add` before it is read.")
        size = self.batch_size if batch_size is None else batch_size
        _checks.positive_int("batch_size", size)
        return _sample(self._rows, self.num_added, key, size)

    def __next__(self) -> ArrayBatch:
        batch = self.sample(jax.random.fold_in(self._key, self._num_batches))
        self._num_batches += 1
        return batch


def _row_shapes(tree: Any) -> list[list[int]]:
    return [list(leaf.shape[1:]) for leaf in jax.tree.leaves(tree)]


@functools.partial(jax.jit, donate_argnums=0)
def _write(buffer: Any, rows: Any, places: jax.Array) -> Any:
    return jax.tree.map(
        lambda kept, new: kept.at[places].set(new.astype(kept.dtype)), buffer, rows
    )


@functools.partial(jax.jit, static_argnames="size")
def _sample(
    buffer: Any, num_added: jax.Array, key: chex.PRNGKey, size: int
) -> ArrayBatch:
    capacity = len(buffer[1])
    places = jax.random.randint(key, [size], 0, jnp.minimum(num_added, capacity))
    # The newest row at a place: the last step that is the place modulo the capacity.
    steps = places + (num_added - 1 - places) // capacity * capacity
    x, y = jax.tree.map(lambda leaf: leaf[places], buffer)
    extra: dict[str, Any] = {"num_steps": jnp.asarray(num_added, jnp.int32)}
    ids = steps[:, None].astype(jnp.int32)
    return ArrayBatch(x=x, y=y, data_index=ids, extra=extra)
