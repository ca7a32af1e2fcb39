"""Batches of several training steps, stacked so that one dispatch trains on all."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from enn.datasets.in_memory import BatchIterator
from enn.supervised.batches import InMemorySideBySide, as_batch
from enn.supervised.row_values import RowValues

MAX_STEPS = 1024
MAX_BYTES = 2**20
MAX_DATA_BYTES = 512 * 2**20
_MAX_PADDED_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches for one of several losses, which may not train at every step.

    Attributes:
      dataset: where they come from.
      is_active: whether to train at a step; None for always.
      row_values: for data in memory, once on the device, returns values that come with
        their batches, each of which is then a pair.
    """

    dataset: Iterator[Any]
    is_active: Callable[[int], bool] | None = None
    row_values: Callable[[Any], RowValues] | None = None


@dataclasses.dataclass
class Chunk:
    """Stacked batches of some consecutive steps.

    Attributes:
      num_steps: how many steps the chunk holds.
      batches: for every stream, its batches stacked on a new leading axis of a fixed
        capacity, of which only the first entries are filled; None if it has none.
      data: for every stream, the arrays on the device of whose rows `batches` holds
        the numbers, or None where it holds the rows themselves.
      slots: for every stream, the position of each step's batch on that axis, -1
        where the stream is not active; None if it is active at every step.
      error: what the data raised, to be raised after these steps have trained.
    """

    num_steps: int
    batches: list[Any]
    data: list[Any] = dataclasses.field(default_factory=lambda: [None])
    slots: list[np.ndarray | None] = dataclasses.field(default_factory=lambda: [None])
    error: BaseException | None = None


class ChunkReader:
    """Pulls batches for consecutive steps, and never more than will be trained on.

    All chunks have the same shapes, however many steps they hold, so that a single
    program trains on them. Data in memory go to the device once, and chunks hold the
    numbers of their rows; batches of other iterators are stacked. Batches whose
    structure, shapes or types change midway start a new chunk. An error of a data set
    ends the chunk with the batches pulled before it.

    Args:
      streams: where batches come from.
      max_steps: how many steps a chunk has room for, unless they would take more than
        `MAX_BYTES`.
      step_bytes: further bytes that each step occupies.
      keeps_data: whether data in memory may go to the device.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        max_steps: int = MAX_STEPS,
        step_bytes: int = 0,
        keeps_data: bool = True,
    ):
        self._streams = streams
        self._max_steps = max_steps
        self._step_bytes = step_bytes
        self._keeps_data = [keeps_data and fits_on_device(s.dataset) for s in streams]
        self._data: list[Any] = [None] * len(streams)
        self._values: list[RowValues | None] = [None] * len(streams)
        # Of the last batch of each stream: a chunk without one keeps room for it.
        self._shapes: dict[int, Any] = {}
        self._held: tuple[dict[int, Any], BaseException | None] | None = None

    @property
    def holds_batch(self) -> bool:
        """Whether a batch was pulled that no chunk holds yet."""
        return self._held is not None

    def drop_batch(self) -> None:
        """Forgets such a batch."""
        self._held = None

    def read(self, first_step: int, num_steps: int) -> Chunk:
        """Returns up to `num_steps` steps from `first_step` on.

        Args:
          first_step: number of the first step, which decides what is active.
          num_steps: how many steps at most.
        """
        for i, keeps in enumerate(self._keeps_data):
            if keeps and self._data[i] is None:
                dataset: Any = self._streams[i].dataset
                data = jax.device_put(_with_room(dataset.data))
                self._data[i] = data
                if (row_values := self._streams[i].row_values) is not None:
                    self._values[i] = row_values(data)
                self._shapes[i] = _shapes(np.empty(dataset.batch_size, np.int32))
        if self._keeps_data == [True] and self._streams[0].is_active is None:
            capacity = self._capacity()
            num_steps = min(num_steps, capacity)
            rows = self._rows(0, num_steps)
            padded = np.zeros((capacity, rows.shape[1]), np.int32)
            padded[:num_steps] = rows
            return Chunk(num_steps, [padded], self._data_and_values())
        return self._read_one_by_one(first_step, num_steps)

    def _read_one_by_one(self, first_step: int, num_steps: int) -> Chunk:
        """Pulls step by step, as streams may pause, end or change their shapes."""
        steps: list[dict[int, Any]] = []
        error, capacity = None, 1
        while len(steps) < min(num_steps, capacity) and error is None:
            pulled, error = self._held or self._pull(first_step + len(steps))
            self._held = None
            shapes = {i: _shapes(batch) for i, batch in pulled.items()}
            if not steps:
                self._shapes |= shapes
                capacity = self._capacity()
            elif any(self._shapes.get(i) != new for i, new in shapes.items()):
                self._held, error = (pulled, error), None
                break
            if pulled or error is None:
                steps.append(pulled)
        chunk = Chunk(len(steps), [], self._data_and_values(), [], error)
        for i, stream in enumerate(self._streams):
            batches = [step[i] for step in steps if i in step]
            chunk.batches.append(_stack(batches, self._shapes.get(i), capacity))
            if stream.is_active is None and len(batches) == len(steps):
                chunk.slots.append(None)
                continue
            active = np.zeros(capacity, bool)
            active[: len(steps)] = [i in step for step in steps]
            slots = np.where(active, np.cumsum(active) - 1, -1)
            chunk.slots.append(slots.astype(np.int32))
        return chunk

    def _pull(self, step: int) -> tuple[dict[int, Any], BaseException | None]:
        pulled: dict[int, Any] = {}
        try:
            for i, stream in enumerate(self._streams):
                if stream.is_active is None or stream.is_active(step):
                    in_memory = self._data[i] is not None
                    pulled[i] = (
                        self._rows(i, 1)[0]
                        if in_memory
                        else as_batch(next(stream.dataset))
                    )
        except BaseException as error:  # Raised again once the chunk has trained.
            return pulled, error
        return pulled, None

    def _rows(self, i: int, num_batches: int) -> np.ndarray:
        dataset: Any = self._streams[i].dataset
        rows = dataset.take_rows(num_batches).astype(np.int32)
        if (values := self._values[i]) is not None:
            values.learn(rows)
        return rows

    def _data_and_values(self) -> list[Any]:
        return [
            data if values is None else (data, values.on_device())
            for data, values in zip(self._data, self._values, strict=True)
        ]

    def _capacity(self) -> int:
        """How many steps of the shapes seen last have room."""
        arrays = [array for _, arrays in self._shapes.values() for array in arrays]
        num_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in arrays)
        capacity = self._max_steps
        while capacity > 1 and capacity * (num_bytes + self._step_bytes) > MAX_BYTES:
            capacity //= 2
        return capacity


def agree(chunk: Chunk, steps_per_dispatch: int) -> tuple[Chunk, int]:
    """Returns the chunk that every process trains on, and how long the next may be.

    Every process calls this with its own arguments; all of them train the same steps.

    Args:
      chunk: what this process has read.
      steps_per_dispatch: how many steps this process would put into a dispatch.

    Returns:
      The chunk, cut to the steps before the first error of any process, and the
      least `steps_per_dispatch`. A process without an error gets one that names the
      process that has.

    Raises:
      ValueError: if the batches of the processes differ in shape or type.
    """
    leaves = jax.tree.leaves(chunk.batches)
    shapes = [f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in leaves]
    failed = chunk.error is not None
    signature = zlib.crc32(repr(shapes).encode()) >> 1
    report = (chunk.num_steps, steps_per_dispatch, failed, signature)
    reports = multihost_utils.process_allgather(np.array(report, np.int32))
    num_steps, steps_per_dispatch = reports[:, :2].min(axis=0).tolist()
    failures = np.flatnonzero(reports[:, 2]).tolist()
    if not failures and (reports[:, [0, 3]] != reports[0, [0, 3]]).any():
        raise ValueError(
            "Processes must have batches of the same shapes and types; process "
            f"{jax.process_index()} got {', '.join(shapes)}."
        )
    error = chunk.error
    if failures and error is None:
        error = RuntimeError(f"The data of process {failures[0]} failed.")
    chunk = dataclasses.replace(chunk, num_steps=num_steps, error=error)
    return chunk, steps_per_dispatch


def fits_on_device(dataset: Any) -> bool:
    """Returns whether a data set lies in memory, and is small enough for the device."""
    # A subclass may change batches on their way.
    return (
        type(dataset) in (BatchIterator, InMemorySideBySide)
        and sum(leaf.nbytes for leaf in jax.tree.leaves(dataset.data)) <= MAX_DATA_BYTES
    )


def _with_room(data: Any) -> Any:
    """Returns small data with rows of zeros, that no batch holds, up to a power of two.

    So that a few programs serve data that grow, as in active learning.
    """
    leaves = jax.tree.leaves(data)
    if sum(leaf.nbytes for leaf in leaves) > _MAX_PADDED_BYTES:
        return data
    missing = 2 ** (len(leaves[0]) - 1).bit_length() - len(leaves[0])
    return jax.tree.map(
        lambda leaf: np.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)), data
    )


def _shapes(batch: Any) -> tuple[Any, list[tuple[tuple[int, ...], np.dtype]]]:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), _dtype(leaf)) for leaf in leaves]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)


def _stack(batches: list[Any], shapes: Any, capacity: int) -> Any:
    """Returns the batches on a new axis of length `capacity`, filled up with zeros."""
    if shapes is None:
        return None
    structure, arrays = shapes
    columns = [jax.tree.leaves(batch) for batch in batches]
    stacked: list[Any] = []
    for i, (shape, dtype) in enumerate(arrays):
        leaves = [column[i] for column in columns]
        if any(_is_on_accelerator(leaf) for leaf in leaves):
            # Padding by repetition: one number of operands, one compilation.
            leaves += leaves[-1:] * (capacity - len(leaves))
            stacked.append(jnp.stack(leaves))
            continue
        rows = np.zeros((capacity, *shape), dtype)
        if leaves:
            np.stack(leaves, out=rows[: len(leaves)])
        stacked.append(rows)
    return structure.unflatten(stacked)


def _is_on_accelerator(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not all(
        device.platform == "cpu" for device in leaf.devices()
    )
