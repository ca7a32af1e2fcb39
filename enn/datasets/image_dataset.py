"""What data sets of small images have in common."""

import abc
from typing import Any

from enn.datasets import base, in_memory, pipeline, sources


class SmallImages(base.DatasetWithTransform):
    """Images of one size, read from a source and preprocessed.

    Subclasses are dataclasses with the fields named below, and say what is stored.
    """

    train_batch: int
    eval_batch: int
    train_data_parallelism: bool
    eval_data_parallelism: bool
    source: sources.Source | None
    seed: int
    skip_corrupt: bool
    num_workers: int
    drop_remainder: bool
    prefetch_to_device: int

    @property
    @abc.abstractmethod
    def hub_name(self) -> str:
        """Name of the data set on the Hugging Face hub."""

    @property
    @abc.abstractmethod
    def image_kind(self) -> sources.ImageKind:
        """What the stored images are."""

    @abc.abstractmethod
    def train_examples(self, table: sources.ImageTable) -> Any:
        """Returns the transformed and preprocessed training examples."""

    @abc.abstractmethod
    def eval_preprocess(self, batch: base.ArrayBatch) -> base.ArrayBatch:
        """Returns an evaluation example, preprocessed."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.image_kind.num_classes

    @property
    def eval_input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one evaluation example."""
        return (*self.image_kind.size, len(self.image_kind.mode))

    def train_dataset(self) -> pipeline.BatchStream:
        """Returns the training batches, endless and shuffled.

        Raises:
          FileNotFoundError: if there is no such data set.
          ValueError: if it cannot be read; on reading, naming file and row, for an
            image that is corrupt or has the wrong size, colours or label.
        """
        log = sources.SkipLog() if self.skip_corrupt else None
        examples = self.train_examples(self._open("train").noting_skipped(log))
        return pipeline.train_stream(
            examples[in_memory.process_slice()],
            self.seed,
            self._batching(self.train_batch, self.train_data_parallelism, True),
            log,
        )

    def eval_datasets(self) -> dict[str, base.ArrayBatchIterator]:
        """Returns one pass over the evaluation batches, a `BatchStream`, by name.

        Raises:
          FileNotFoundError: if there is no such data set.
          ValueError: as `train_dataset`.
        """
        table = self._open("test").take(in_memory.process_slice())
        batching = self._batching(
            self.eval_batch, self.eval_data_parallelism, self.drop_remainder
        )
        streams: dict[str, base.ArrayBatchIterator] = {}
        for name, transformer in self.eval_ds_transformers.items():
            log = sources.SkipLog() if self.skip_corrupt else None
            examples = pipeline.transformed(
                table.noting_skipped(log),
                transformer,
                lambda dataset: dataset.map(self.eval_preprocess),
            )
            streams[name] = pipeline.BatchStream(
                examples, len(examples), self.seed, batching, log
            )
        return streams

    def _open(self, split: str) -> sources.ImageTable:
        return sources.open_images(
            self.hub_name if self.source is None else self.source,
            [split],
            self.image_kind,
            self.skip_corrupt,
        )

    def _batching(
        self, batch_size: int, data_parallelism: bool, drop_remainder: bool
    ) -> pipeline.Batching:
        return pipeline.Batching(
            batch_size,
            data_parallelism,
            drop_remainder,
            self.num_workers,
            self.prefetch_to_device,
        )
