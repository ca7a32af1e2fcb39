"""What networks compute from rows of data alone, computed once for each row."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn._known_rows import RowFn
from enn.supervised.programs import shared

MAX_BYTES = 128 * 2**20


def fitting(fns: Sequence[RowFn], dataset: Any) -> tuple[RowFn, ...]:
    """Returns the functions whose values at all rows fit, the first ones first.

    Args:
      fns: functions of inputs.
      dataset: what they are to be known for, data in memory.
    """
    chosen: list[RowFn] = []
    num_rows, num_bytes = len(dataset.data.y), 0
    for fn in fns:
        shapes = jax.tree.leaves(_shapes(fn, dataset))
        if not shapes or any(s.shape[:1] != (dataset.batch_size,) for s in shapes):
            continue
        rows = sum(math.prod(s.shape[1:]) * s.dtype.itemsize for s in shapes)
        num_bytes += num_rows * rows
        if num_bytes > MAX_BYTES:
            break
        chosen.append(fn)
    return tuple(chosen)


class RowValues:
    """The values of some functions at the rows of data that training has met.

    Each row is computed when it is first met, in blocks of the size of a batch, so that
    a few steps on large data compute no more than they would without.

    Args:
      fns: functions of inputs; see `enn._known_rows`.
      dataset: the data.
      inputs: the inputs of all rows, on the device.
    """

    def __init__(self, fns: tuple[RowFn, ...], dataset: Any, inputs: Any):
        self._compute = _compute(*fns)
        self._inputs, self._batch_size = inputs, dataset.batch_size
        num_rows = len(jax.tree.leaves(inputs)[0])
        self._rows = jax.tree.map(
            lambda s: np.zeros((num_rows, *s.shape[1:]), s.dtype),
            tuple(_shapes(fn, dataset) for fn in fns),
        )
        self._is_known = np.zeros(num_rows, bool)
        self._on_device: Any = None

    def learn(self, rows: np.ndarray) -> None:
        """Computes the values of those of `rows` that are new."""
        new = np.unique(rows[~self._is_known[rows]])
        if not new.size:
            return
        size = self._batch_size
        # One program for all blocks: the last is filled up with its first row.
        blocks = np.full(-(-new.size // size) * size, new[0], np.int32)
        blocks[: new.size] = new
        for block in blocks.reshape(-1, size):
            values = jax.tree.leaves(self._compute(self._inputs, block))
            for to, value in zip(jax.tree.leaves(self._rows), values, strict=True):
                to[block] = value
        self._is_known[new] = True
        self._on_device = None

    def on_device(self) -> Any:
        """Returns the values of all rows; those of new ones are zero."""
        if self._on_device is None:
            self._on_device = jax.tree.map(jnp.array, self._rows)
        return self._on_device


def _shapes(fn: RowFn, dataset: Any) -> Any:
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (dataset.batch_size, *leaf.shape[1:]), jnp.asarray(leaf[:0]).dtype
        ),
        dataset.data.x,
    )
    return jax.eval_shape(fn, batch)


@shared
def _compute(*fns: RowFn) -> Callable[..., Any]:
    @jax.jit
    def compute(inputs: Any, rows: jax.Array) -> tuple[Any, ...]:
        batch = jax.tree.map(lambda leaf: leaf[rows], inputs)
        return tuple(fn(batch) for fn in fns)

    return compute
