"""What data sets of images have in common."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

from enn.datasets import base, in_memory, pipeline, sources


@dataclasses.dataclass(kw_only=True)
class StoredImages(base.DatasetWithTransform):
    """Images that are read from a source, in batches.

    Attributes:
      source: where the images are; see `sources.Source`. None for the Hugging Face hub,
        except that ImageNet has to be asked for.
      skip_corrupt: whether to skip rows that cannot be read, which the `skipped` of the
        iterator lists, rather than to raise.
      num_workers: number of processes that read, for which a script needs the guard
        `if __name__ == "__main__":`; 0 for threads. The batches are the same.
      drop_remainder: whether to drop a last evaluation batch that is too short.
      prefetch_to_device: number of batches put on the devices ahead of the one in use;
        0 for NumPy arrays.
    """

    source: sources.Source | None = None
    skip_corrupt: bool = False
    num_workers: int = 0
    drop_remainder: bool = True
    prefetch_to_device: int = 0


@dataclasses.dataclass(kw_only=True)
class SmallImages(StoredImages):
    """Images of one size, read from a source and preprocessed.

    Subclasses are dataclasses that add the sizes of batches and whether these have an
    axis of devices, and say what is stored.

    Attributes:
      seed: fixes the order of training examples and their augmentation.
    """

    if TYPE_CHECKING:  # Fields of the subclasses, which fix their order.
        train_batch: int
        eval_batch: int
        train_data_parallelism: bool
        eval_data_parallelism: bool
    seed: int = 0

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
