"""ImageNet: photographs of 1000 classes.

ImageNet is never downloaded unasked: its licence has to be accepted, and it takes about
150 GB. `source` says where it is.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from enn import _checks
from enn.datasets import base, image_ops, pipeline, sources, utils
from enn.datasets.image_dataset import StoredImages

MEAN_RGB = (123.675, 116.28, 103.53)
STDDEV_RGB = (58.395, 57.12, 57.375)
MAX_NUM_TRAIN = 1281167

_MEAN, _STD = np.array(MEAN_RGB, np.float32), np.array(STDDEV_RGB, np.float32)
_NUM_VALID = 10000
_NUM_CLASSES = 1000
_KIND = sources.ImageKind(num_classes=_NUM_CLASSES, mode="RGB", size=())
_NO_SOURCE = (
    "ImageNet is not downloaded unasked. Pass source= a directory with folders train/ "
    "and val/ of one folder a class, or with parquet files, or pass "
    'source="ILSVRC/imagenet-1k" to have Hugging Face datasets fetch about 150 GB once '
    "you have accepted its licence there; fake_data=True needs no images."
)


class Split(base.SizedSplit):
    """Splits by their number of examples.

    `VALID` is the first 10 000 stored training images, `TRAIN` the others, and `TEST`
    the validation images that are stored.
    """

    TRAIN = 1271167
    TRAIN_AND_VALID = 1281167
    VALID = 10000
    TEST = 50000


@dataclasses.dataclass
class Imagenet(StoredImages):
    """ImageNet (Russakovsky et al., 2015, https://arxiv.org/abs/1409.0575).

    Batches have `x` float32 `[batch, 224, 224, 3]`, `y` and `data_index` int64
    `[batch]`, with data parallelism `[local_devices, batch / devices, ...]`. They come
    from `train_dataset`, endless, and `eval_datasets`, one pass; see `load`.

    >>> from enn import datasets
    >>> data = datasets.Imagenet(train_batch=32, source="my_imagenet")  # Not read yet
    >>> data.num_classes, data.eval_input_shape
    (1000, (224, 224, 3))

    Attributes:
      train_ds_transformer: see `load`.
      eval_ds_transformers: one evaluation dataset by name for each transformer.
      train_batch: size of training batches, over all devices.
      eval_batch: size of evaluation batches, over all devices.
      dataset_seed: fixes the order of training examples and their augmentation.
      enable_double_transpose: whether `x` is `[..., 224, 224, 3, batch]` on TPU.
      fake_data: whether to give zeros.
      num_train: number of training examples.
      train_data_parallelism: whether training batches have an axis of devices.
      eval_data_parallelism: whether evaluation batches have an axis of devices.

    Further ones, by keyword: see `StoredImages`.
    """

    train_ds_transformer: base.DatasetTransformer = base.identity_transformer
    eval_ds_transformers: dict[str, base.DatasetTransformer] = dataclasses.field(
        default_factory=base.default_eval_transformers
    )
    train_batch: int = 128
    eval_batch: int = 100
    dataset_seed: int = 0
    enable_double_transpose: bool = True
    fake_data: bool = False
    num_train: int = MAX_NUM_TRAIN
    train_data_parallelism: bool = True
    eval_data_parallelism: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return _NUM_CLASSES

    @property
    def eval_input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one evaluation example."""
        return (224, 224, 3)

    def train_dataset(self) -> base.ArrayBatchIterator:
        """Returns the training batches; raises what `load` raises."""
        return load(
            Split.TRAIN_AND_VALID,
            is_training=True,
            total_batch_size=self.train_batch,
            data_parallelism=self.train_data_parallelism,
            ds_transform=self.train_ds_transformer,
            num_examples=self.num_train,
            **self._options(),
        )

    def eval_datasets(self) -> dict[str, base.ArrayBatchIterator]:
        """Returns the evaluation batches by name; raises what `load` raises."""
        return {
            name: load(
                Split.TEST,
                is_training=False,
                total_batch_size=self.eval_batch,
                data_parallelism=self.eval_data_parallelism,
                ds_transform=transformer,
                **self._options(),
            )
            for name, transformer in self.eval_ds_transformers.items()
        }

    def _options(self) -> dict[str, Any]:
        on_tpu = jax.local_devices()[0].platform == "tpu"
        return {
            "transpose": self.enable_double_transpose and on_tpu,
            "fake_data": self.fake_data,
            "seed": self.dataset_seed,
            "source": self.source,
            "skip_corrupt": self.skip_corrupt,
            "num_workers": self.num_workers,
            "drop_remainder": self.drop_remainder,
            "prefetch_to_device": self.prefetch_to_device,
        }


def load(
    split: Split,
    *,
    is_training: bool,
    total_batch_size: int,
    data_parallelism: bool,
    dtype: Any = np.float32,
    transpose: bool = False,
    fake_data: bool = False,
    image_size: tuple[int, int] = (224, 224),
    seed: int | None = None,
    ds_transform: base.DatasetTransformer = base.identity_transformer,
    num_examples: int | None = None,
    source: sources.Source | None = None,
    skip_corrupt: bool = False,
    num_workers: int = 0,
    drop_remainder: bool = True,
    prefetch_to_device: int = 0,
) -> base.ArrayBatchIterator:
    """Returns batches of ImageNet, each process those of its own part of a split.

    Images become RGB. In training each is randomly cropped (`image_ops.random_box`),
    mirrored with probability ½, resized and normalised, anew every epoch; in evaluation
    it is cropped at the centre (`image_ops.central_box`), resized and normalised.

    Parts are consecutive and, to one example, equal. Data indices number the examples
    of the whole split.

    Args:
      split: which examples.
      is_training: whether batches are endless, shuffled and augmented, or one pass in
        order.
      total_batch_size: size of the batches, over all devices.
      data_parallelism: whether leaves are `[local_devices, batch / devices, ...]`
        rather than `[batch, ...]`.
      dtype: of `x`.
      transpose: whether `x` is `[..., height, width, channels, batch]`.
      fake_data: whether to give zeros, int32 labels among them, for one pass.
      image_size: height and width of `x`.
      seed: fixes order and augmentation; None draws afresh at every call.
      ds_transform: maps the `grain.MapDataset` of preprocessed examples to another one.
        In training it is applied to one epoch, which is then shuffled.
      num_examples: how many examples to use, the first ones; None for all.
      source: where the images are, see `sources.Source`: a directory with folders
        `train` and `val` of one folder a class, parquet files, or the data set
        "ILSVRC/imagenet-1k" of the Hugging Face hub, which has to be asked for.
      skip_corrupt: whether to skip rows that cannot be read, which the `skipped` of the
        iterator lists, rather than to raise.
      num_workers: number of processes that read, for which a script needs the guard
        `if __name__ == "__main__":`; 0 for threads. The batches are the same.
      drop_remainder: whether to drop a last evaluation batch that is too short.
      prefetch_to_device: number of batches put on the devices ahead of the one in use;
        0 for NumPy arrays.

    Returns:
      A `BatchStream`, or of fake data a plain iterator.

    Raises:
      FileNotFoundError: without a `source`, or if it is not there.
      ValueError: if it cannot be read, if there are no examples in the split, or, in
        evaluation that drops the remainder, if the examples of this process after
        `ds_transform` are not a multiple of its batches; on reading, naming file and
        row, for an image that is corrupt or has a wrong label.
    """
    batching = pipeline.Batching(
        total_batch_size,
        data_parallelism,
        drop_remainder or is_training,
        num_workers,
        prefetch_to_device,
        lambda batch: dataclasses.replace(batch, x=_finish(batch.x, transpose, dtype)),
    )
    if fake_data:
        num = _num_examples(split, num_examples, split.num_examples)
        return _fake_batches(_part(num), batching, image_size, dtype)
    if source is None:
        raise FileNotFoundError(_NO_SOURCE)
    log = sources.SkipLog() if skip_corrupt else None
    table = _open(source, split, num_examples, skip_corrupt).noting_skipped(log)
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    if is_training:
        _, draw_seed = pipeline.process_seeds(seed)
        preprocess = functools.partial(preprocess_train, image_size=image_size)
        examples = pipeline.transformed(
            table,
            ds_transform,
            lambda dataset: dataset.random_map(preprocess, seed=draw_seed),
        )
        return pipeline.train_stream(examples, seed, batching, log)
    preprocess = functools.partial(preprocess_eval, image_size=image_size)
    examples = pipeline.transformed(
        table, ds_transform, lambda dataset: dataset.map(preprocess)
    )
    rows = utils.batch_rows(total_batch_size, data_parallelism)
    if drop_remainder and len(examples) % rows:
        raise ValueError(
            f"{len(examples)} examples to evaluate are not a multiple of a batch of "
            f"{rows}: choose another batch size, or drop_remainder=False to have a "
            "shorter last batch."
        )
    return pipeline.BatchStream(examples, len(examples), seed, batching, log)


def _open(
    source: sources.Source, split: Split, num_examples: int | None, skip_corrupt: bool
) -> sources.ImageTable:
    """The examples of this process, numbered within the whole split."""
    stored = ["validation", "test"] if split is Split.TEST else ["train"]
    table = sources.open_images(source, stored, _KIND, skip_corrupt)
    # The first stored training images are those of the split VALID.
    offset = _NUM_VALID if split is Split.TRAIN else 0
    num = _num_examples(split, num_examples, len(table) - offset)
    part = _part(num)
    table = table.take(slice(offset, offset + num)).renumbered()
    return table.take(slice(part.start, part.stop))


def _num_examples(split: Split, wanted: int | None, stored: int) -> int:
    num = min(split.num_examples, stored)
    if num <= 0:
        raise ValueError(
            f"split {split.name} has no examples: it begins at row {_NUM_VALID} of the "
            f"training images, of which there are {stored + _NUM_VALID}."
        )
    if wanted is None:
        return num
    return min(_checks.positive_int("num_examples", wanted), num)


def _part(num_examples: int) -> range:
    """The consecutive examples of this process; the first parts may be one longer."""
    index, count = jax.process_index(), jax.process_count()
    size, longer = divmod(num_examples, count)
    start = index * size + min(index, longer)
    return range(start, start + size + (index < longer))


def _fake_batches(
    part: range, batching: pipeline.Batching, image_size: tuple[int, int], dtype: Any
) -> Iterator[base.ArrayBatch]:
    rows = utils.batch_rows(batching.total_batch_size, batching.data_parallelism)
    devices = jax.local_device_count()
    dims = (devices, rows // devices) if batching.data_parallelism else (rows,)
    x, y = np.zeros((*dims, *image_size, 3), dtype), np.zeros(dims, np.int32)
    for start in range(part.start, part.stop - rows + 1, rows):
        index = np.arange(start, start + rows).reshape(dims)
        batch = base.ArrayBatch(x=x, y=y, data_index=index)
        yield batching.finish(batch) if batching.finish else batch


def preprocess_train(
    batch: base.ArrayBatch, rng: np.random.Generator, image_size: tuple[int, int]
) -> base.ArrayBatch:
    """Returns one example, its image randomly cropped, mirrored and normalised.

    Args:
      batch: one example, `x` of bytes `[height, width, 3]`.
      rng: source of the draws.
      image_size: height and width of the result.
    """
    stored_size = batch.x.shape[:2]
    box = image_ops.random_box(stored_size, rng)
    box = box or image_ops.central_box(stored_size, image_size)
    image = image_ops.random_flip(image_ops.crop(batch.x, box), rng)
    return _resized(batch, image, image_size)


def preprocess_eval(
    batch: base.ArrayBatch, image_size: tuple[int, int]
) -> base.ArrayBatch:
    """Returns one example, its image cropped at the centre and normalised.

    Args:
      batch: one example, `x` of bytes `[height, width, 3]`.
      image_size: height and width of the result.
    """
    box = image_ops.central_box(batch.x.shape[:2], image_size)
    return _resized(batch, image_ops.crop(batch.x, box), image_size)


def _resized(
    batch: base.ArrayBatch, image: np.ndarray, size: tuple[int, int]
) -> base.ArrayBatch:
    image = image_ops.resize_bicubic(image, *size)
    return dataclasses.replace(batch, x=(image - _MEAN) / _STD)


def _finish(x: np.ndarray, transpose: bool, dtype: Any) -> np.ndarray:
    if transpose:
        x = np.moveaxis(x, -4, -1)
    return x.astype(dtype, copy=False)
