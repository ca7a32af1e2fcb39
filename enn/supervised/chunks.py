"""Batches of several training steps, stacked so that one dispatch trains on all."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn.datasets.in_memory import BatchIterator

MAX_BYTES = 64 * 2**20
MAX_STEPS = 1024


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches for one of several losses, which may not train at every step."""

    dataset: Iterator[Any]
    is_active: Callable[[int], bool] | None = None


@dataclasses.dataclass
class Chunk:
    """Stacked batches of some consecutive steps.

    Attributes:
      num_steps: how many steps the chunk holds.
      batches: for every stream, its batches stacked on a new leading axis of a fixed
        capacity, of which only the first entries are filled; None if it has none.
      slots: for every stream, the position of each step's batch on that axis, -1
        where the stream is not active; None if it is active at every step.
      error: what the data raised, to be raised after these steps have trained.
    """

    num_steps: int
    batches: list[Any]
    slots: list[np.ndarray | None]
    error: BaseException | None = None


class ChunkReader:
    """Pulls batches for consecutive steps, and never more than will be trained on.

    Batches whose structure, shapes or types change midway start a new chunk. An
    error of a data set ends the chunk with the batches pulled before it.
    """

    def __init__(self, streams: Sequence[Stream]):
        self._streams = streams
        self._held: dict[int, Any] | None = None

    @property
    def holds_batch(self) -> bool:
        """Whether a batch was pulled that no chunk holds yet."""
        return self._held is not None

    def drop_batch(self) -> None:
        """Forgets such a batch."""
        self._held = None

    def read(self, first_step: int, num_steps: int, capacity: int) -> Chunk:
        """Returns up to `num_steps` steps from `first_step` on.

        Args:
          first_step: number of the first step, which decides what is active.
          num_steps: how many steps at most.
          capacity: how many steps a chunk has room for; fewer where they would take
            more than `MAX_BYTES`.
        """
        if self._held is None and len(self._streams) == 1:
            dataset, is_active = self._streams[0].dataset, self._streams[0].is_active
            if isinstance(dataset, BatchIterator) and is_active is None:
                row_bytes = _num_bytes(dataset.data) / len(dataset.data.y)
                capacity = _fitting(capacity, row_bytes * dataset.batch_size)
                num_steps = min(num_steps, capacity)
                stacked = _pad(dataset.take(num_steps), capacity)
                return Chunk(num_steps, [stacked], [None])
        return self._read_one_by_one(first_step, num_steps, capacity)

    def _read_one_by_one(self, first_step: int, num_steps: int, capacity: int) -> Chunk:
        steps: list[dict[int, Any]] = []
        error = None
        while len(steps) < num_steps:
            pulled, self._held = self._held, None
            if pulled is None:
                pulled, error = self._pull(first_step + len(steps))
            if steps and not _alike(steps, pulled):
                self._held = pulled
                break
            if pulled or error is None:
                steps.append(pulled)
            if error is not None:
                break
            if len(steps) == 1:
                capacity = _fitting(capacity, _num_bytes(pulled))
                num_steps = min(num_steps, capacity)
        chunk = Chunk(len(steps), [], [], error)
        for i, stream in enumerate(self._streams):
            batches = [step[i] for step in steps if i in step]
            chunk.batches.append(_stack(batches, capacity) if batches else None)
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
                    pulled[i] = next(stream.dataset)
        except BaseException as error:  # Raised again once the chunk has trained.
            return pulled, error
        return pulled, None


def _fitting(capacity: int, num_bytes: float) -> int:
    while capacity > 1 and capacity * num_bytes > MAX_BYTES:
        capacity //= 2
    return capacity


def _num_bytes(tree: Any) -> int:
    return sum(np.size(leaf) * _dtype(leaf).itemsize for leaf in jax.tree.leaves(tree))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)


def _alike(steps: list[dict[int, Any]], pulled: dict[int, Any]) -> bool:
    """Whether every batch of a step stacks with the earlier ones of its stream."""
    return all(
        _signature(batch) == _signature(earlier[i])
        for i, batch in pulled.items()
        for earlier in [next((s for s in reversed(steps) if i in s), {i: batch})]
    )


def _signature(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf), _dtype(leaf)) for leaf in leaves]


def _pad(stacked: Any, capacity: int) -> Any:
    def pad(leaf: np.ndarray) -> np.ndarray:
        if len(leaf) == capacity:
            return leaf
        padded = np.zeros((capacity, *leaf.shape[1:]), leaf.dtype)
        padded[: len(leaf)] = leaf
        return padded

    return jax.tree.map(pad, stacked)


def _stack(batches: list[Any], capacity: int) -> Any:
    def stack(*leaves: Any) -> Any:
        if any(_is_on_accelerator(leaf) for leaf in leaves):
            # Padding by repetition: one number of operands, one compilation.
            return jnp.stack([*leaves, *leaves[-1:] * (capacity - len(leaves))])
        stacked = np.zeros((capacity, *np.shape(leaves[0])), _dtype(leaves[0]))
        np.stack([np.asarray(leaf) for leaf in leaves], out=stacked[: len(leaves)])
        return stacked

    return jax.tree.map(stack, *batches)


def _is_on_accelerator(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not all(
        device.platform == "cpu" for device in leaf.devices()
    )
