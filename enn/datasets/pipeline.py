"""From examples to batches: shards, shuffles, workers, and a position to resume at."""

import collections
import dataclasses
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from enn import _checks, _extras
from enn.datasets import base, sources, utils
from enn.datasets.base import Positioned
from enn.datasets.utils import LabelSelection

_MAX_GROUP = 16


@dataclasses.dataclass(frozen=True)
class Batching:
    """How examples become batches.

    Attributes:
      total_batch_size: number of examples of a batch, over all devices.
      data_parallelism: whether batches have an axis of local devices.
      drop_remainder: whether to drop a last batch that is too short.
      num_workers: number of processes that read and preprocess; 0 for threads of this
        one. The batches are the same.
      prefetch_to_device: number of batches to put on the devices ahead of the one in
        use; 0 for host arrays.
      finish: applied to whole batches.
    """

    total_batch_size: int
    data_parallelism: bool
    drop_remainder: bool = True
    num_workers: int = 0
    prefetch_to_device: int = 0
    finish: Callable[[base.ArrayBatch], base.ArrayBatch] | None = None

    def __post_init__(self) -> None:
        _checks.positive_int("batch size", self.total_batch_size)
        _checks.non_negative_int("num_workers", self.num_workers)
        _checks.non_negative_int("prefetch_to_device", self.prefetch_to_device)


class BatchStream(Positioned, Iterator[base.ArrayBatch]):
    """Batches of a grain dataset, endless or one pass over it.

    Reports and restores its position as `BatchIterator` does for arrays in memory. An
    error raises again on the next call: no example is passed over.

    Reading ahead goes on in threads, or processes, until `close`, which also the end
    of the data and the end of the stream's life bring about.
    """

    def __init__(
        self,
        examples: Any,
        num_data: int,
        seed: int,
        batching: Batching,
        skip_log: sources.SkipLog | None = None,
    ):
        """Starts at the first example.

        Args:
          examples: a `grain.MapDataset` of `ArrayBatch`es, each one example.
          num_data: number of examples of an epoch.
          seed: what the order and the draws of `examples` depend on, for `state`.
          batching: how they become batches.
          skip_log: where rows that are skipped are noted.
        """
        self._examples = examples
        self._num_data = num_data
        self._seed = seed
        self._batching = batching
        self._skip_log = skip_log
        self._batches: Any = None
        self._start(0)

    @property
    def is_endless(self) -> bool:
        """Whether rows come again, as in training."""
        return len(self._examples) > self._num_data

    @property
    def skipped(self) -> tuple[str, ...]:
        """The rows skipped so far as unreadable: file, row and reason."""
        return self._skip_log.messages() if self._skip_log else ()

    def __next__(self) -> base.ArrayBatch:
        while len(self._ahead) <= self._batching.prefetch_to_device:
            if self._ahead and isinstance(self._ahead[-1][1], Exception):
                break
            self._ahead.append(self._load())
        position, batch = self._ahead.popleft()
        if self._skip_log:
            self._skip_log.report()
        if isinstance(batch, Exception):
            self._start(self._position)
            raise batch
        self._position = position
        return batch

    def restore(self, state: dict[str, int]) -> None:
        """Goes to the position of `state`, whatever the number of workers was.

        Raises:
          ValueError: if `state` is of an iterator with another seed or other data.
        """
        self._start(self._position_of(state))

    def restart(self) -> None:
        """Goes to the first example."""
        self._start(0)

    def close(self) -> None:
        """Stops reading ahead; the next call of `next` resumes it."""
        self._start(self._position)

    def _start(self, position: int) -> None:
        if self._batches is not None:
            self._batches.close()
        self._batches = None
        self._position = position
        self._ahead: collections.deque[tuple[int, Any]] = collections.deque()

    def _load(self) -> tuple[int, Any]:
        """The position after the next batch, and the batch or what it raised."""
        try:
            if self._batches is None:
                self._progress = _Progress(self._position, self._num_data)
                self._batches = self._read_from(self._position)
            batch = next(self._batches)
        except Exception as error:  # Also StopIteration.
            return -1, error
        except BaseException:  # Ctrl-C, with half of a batch read.
            self._start(self._position)
            raise
        if self._batching.prefetch_to_device:
            batch = _to_devices(batch, self._batching.data_parallelism)
        return self._progress.position, batch

    def _read_from(self, position: int) -> Any:
        # Rows are read in groups that divide a batch, which costs less than one at a
        # time, and are stacked once, as batches; workers send whole groups.
        grain = _extras.require("grain", "datasets")
        batching = self._batching
        rows = utils.batch_rows(batching.total_batch_size, batching.data_parallelism)
        size = max(n for n in range(1, _MAX_GROUP + 1) if rows % n == 0)
        threads = min(16, 2 * (os.cpu_count() or 1))
        options = grain.ReadOptions(threads, max(threads, 2 * rows // size))
        groups = _grouped(self._examples, position, size)
        if batching.num_workers:
            groups = groups.map(_pack)
        groups = groups.to_iter_dataset(options)
        if batching.num_workers:
            # Workers ask absl for flags, which only programs of absl have parsed.
            flags = _extras.require("absl.flags", "datasets").FLAGS
            if not flags.is_parsed():
                flags.mark_as_parsed()
            workers = grain.MultiprocessingOptions(batching.num_workers, 2)
            groups = groups.mp_prefetch(workers)
        examples = grain.experimental.FlatMapIterDataset(groups, _Ungroup())
        batches = utils.slice_dataset_to_batches(
            examples.filter(self._progress),
            batching.total_batch_size,
            batching.data_parallelism,
            batching.drop_remainder,
        )
        if batching.finish is not None:
            batches = batches.map(batching.finish)
        return iter(batches)


def _grouped(examples: Any, start: int, size: int) -> Any:
    """The examples from `start` on, `size` at a time: one at a time costs too much.

    An element is a list of examples, with None for a row that is not there.
    """
    grain = _extras.require("grain", "datasets")
    stop = len(examples)

    def read(group: int) -> list[Any]:
        first = start + group * size
        return [examples[row] for row in range(first, min(first + size, stop))]

    return grain.MapDataset.range(-(-(stop - start) // size)).map(read)


def _pack(group: list[Any]) -> tuple[np.ndarray, Any]:
    """Stacks the rows that exist, so that few arrays pass between processes."""
    is_there = np.array([row is not None for row in group])
    return is_there, utils.stack([row for row in group if row is not None])


class _Ungroup:
    """Undoes `_grouped` and `_pack`: one element a row."""

    max_fan_out = _MAX_GROUP

    def flat_map(self, group: list[Any] | tuple[np.ndarray, Any]) -> list[Any]:
        if isinstance(group, list):
            return group
        is_there, stacked = group
        leaves, structure = jax.tree.flatten(stacked)
        rows = map(structure.unflatten, zip(*leaves, strict=True))
        return [next(rows) if there else None for there in is_there]


class _Progress:
    """Counts the rows read, and marks those that are examples."""

    def __init__(self, position: int, num_data: int):
        self.position = position
        self._num_data = num_data
        self._num_missing = 0

    def __call__(self, example: Any) -> bool:
        self.position += 1
        self._num_missing = 0 if example is not None else self._num_missing + 1
        if self._num_missing > self._num_data:
            raise ValueError(
                f"no example is left of {self._num_data}: all were skipped as "
                "unreadable or filtered out."
            )
        return example is not None


def _to_devices(batch: Any, data_parallelism: bool) -> Any:
    if not data_parallelism:
        return jax.device_put(batch)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), "device")
    spec = jax.sharding.PartitionSpec("device")
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))


def process_seeds(seed: int) -> tuple[int, int]:
    """Returns seeds of this process for shuffling and for draws.

    grain shuffles epoch e with seed + e: without mixing, neighbouring seeds would share
    their orders.
    """
    entropy = [operator.index(seed) % 2**64, jax.process_index()]
    shuffle_seed, draw_seed = np.random.SeedSequence(entropy).generate_state(2)
    return int(shuffle_seed), int(draw_seed)


def transformed(
    table: sources.ImageTable,
    transformer: base.DatasetTransformer,
    preprocess: Callable[[Any], Any] = base.identity_transformer,
) -> Any:
    """Returns the rows as a `grain.MapDataset`, preprocessed and then transformed.

    A transformer that looks at labels only goes first: no image is read in vain.

    Args:
      table: rows.
      transformer: applied to the preprocessed dataset.
      preprocess: maps the `grain.MapDataset` of the rows as stored to another.
    """
    grain = _extras.require("grain", "datasets")
    if isinstance(transformer, LabelSelection):
        table = table.take(transformer.rows(table.labels))
        transformer = base.identity_transformer
    # As a source it would be measured at every read, which takes longer than the read.
    stored = grain.MapDataset.range(len(table)).map(table.__getitem__)
    return transformer(preprocess(stored))


def train_stream(
    examples: Any, seed: int, batching: Batching, skip_log: sources.SkipLog | None
) -> BatchStream:
    """Returns endless batches, every epoch in another order.

    Args:
      examples: those of this process, a `grain.MapDataset`.
      seed: fixes the order.
      batching: how examples become batches.
      skip_log: where rows that are skipped are noted.

    Raises:
      ValueError: if there are no examples.
    """
    if not len(examples):
        raise ValueError("there are no examples to train on.")
    shuffle_seed, _ = process_seeds(seed)
    epochs = examples.shuffle(shuffle_seed).repeat()
    return BatchStream(epochs, len(examples), seed, batching, skip_log)
