"""What networks compute from rows of data alone, computed once for each row."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn._known_rows import RowFn
from enn.supervised.programs import shared

MAX_BYTES = 128 * 2**20


def fitting(fns: Sequence[RowFn], inputs: Any, num_rows: int) -> tuple[int, ...]:
    """Returns which functions have values that fit at all rows, the first ones first.

    Args:
      fns: functions of inputs.
      inputs: shapes and types of the inputs of a batch.
      num_rows: number of rows that they are to be known for.
    """
    chosen: list[int] = []
    num_bytes = 0
    batch_size = len(jax.tree.leaves(inputs)[0])
    for i, fn in enumerate(fns):
        shapes = jax.tree.leaves(jax.eval_shape(fn, inputs))
        if not shapes or any(s.shape[:1] != (batch_size,) for s in shapes):
            continue
        row_bytes = sum(math.prod(s.shape[1:]) * s.dtype.itemsize for s in shapes)
        num_bytes += num_rows * row_bytes
        if num_bytes > MAX_BYTES:
            break
        chosen.append(i)
    return tuple(chosen)


def batch_inputs(data: Any, batch_size: int) -> Any:
    """Returns shapes and types of the inputs of a batch of `data`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (batch_size, *leaf.shape[1:]), jnp.asarray(leaf[:0]).dtype
        ),
        data.x,
    )


class RowValues:
    """Values at the rows of data that training has met.

    Each row is computed when it is first met, in blocks of the size of a batch, so that
    a few steps on large data compute no more than they would without.

    Args:
      compute: `[num_runs, batch]` numbers of rows -> a tree of arrays
        `[num_runs, batch, ...]`, the values that each run has at them.
      batch_size: `batch`.
      num_rows: number of rows of the data of a run, or of all runs if each has its own.
      offsets: `[num_runs]`; what to add to numbers of rows for those of values.
        Multiples of `num_rows` where runs share the rows, zeros where each has its own.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], Any],
        batch_size: int,
        num_rows: int,
        offsets: Sequence[int] = (0,),
    ):
        self._compute, self._batch_size = compute, batch_size
        self._offsets = np.array(offsets)[:, None]
        num_values = num_rows + offsets[-1]
        self._rows = jax.tree.map(
            lambda s: np.zeros((num_values, *s.shape[2:]), s.dtype),
            jax.eval_shape(compute, np.zeros((len(offsets), batch_size), np.int32)),
        )
        self._is_known = np.zeros(num_values, bool)
        self._on_device: Any = None

    def learn(self, rows: np.ndarray) -> None:
        """Computes the values of those of `rows` that are new."""
        size = self._batch_size
        of_runs = rows.reshape(len(rows), -1, size) + self._offsets
        if self._is_known[of_runs].all():
            return
        of_runs = of_runs.swapaxes(0, 1).reshape(len(self._offsets), -1)
        new = [np.unique(met[~self._is_known[met]]) for met in of_runs]
        num_blocks = -(-max(map(len, new)) // size)
        # One program for all blocks: runs with few new rows repeat them, or any.
        blocks = np.stack(
            [
                np.resize(some if some.size else met[:1], (num_blocks, size))
                for some, met in zip(new, of_runs, strict=True)
            ],
            axis=1,
        )
        for block in blocks:
            values = self._compute((block - self._offsets).astype(np.int32))
            for to, value in zip(
                *map(jax.tree.leaves, (self._rows, values)), strict=True
            ):
                to[block] = value
        self._is_known[blocks] = True
        self._on_device = None

    def on_device(self) -> Any:
        """Returns the values of all rows; those of new ones are zero."""
        if self._on_device is None:
            self._on_device = jax.tree.map(jnp.array, self._rows)
        return self._on_device


def of_functions(
    fns: Sequence[RowFn], dataset: Any
) -> tuple[tuple[RowFn, ...], Callable[[Any], RowValues] | None]:
    """Returns the functions that fit, and what makes their values from the data.

    Args:
      fns: functions of inputs; see `enn._known_rows`.
      dataset: the data, in memory.
    """
    num_rows, size = len(dataset.data.y), dataset.batch_size
    chosen = fitting(fns, batch_inputs(dataset.data, size), num_rows)
    fixed = tuple(fns[i] for i in chosen)
    compute = _compute(*fixed)

    def make(data: Any) -> RowValues:
        return RowValues(functools.partial(compute, data.x), size, len(data.y))

    return fixed, make if fixed else None


@shared
def _compute(*fns: RowFn) -> Callable[..., Any]:
    @jax.jit
    def compute(inputs: Any, rows: jax.Array) -> Any:
        (rows,) = rows
        batch = jax.tree.map(lambda leaf: leaf[rows], inputs)
        return jax.tree.map(lambda value: value[None], tuple(fn(batch) for fn in fns))

    return compute
