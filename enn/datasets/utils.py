"""Examples, batches and data sets built from others."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from enn import _extras
from enn.datasets import base


def change_ds_dict_to_enn_batch(ds_dict: base.DatasetDict) -> base.ArrayBatch:
    """Returns `ArrayBatch(x=image, y=label)` of an example with these two keys.

    >>> from enn import datasets
    >>> datasets.change_ds_dict_to_enn_batch({"image": [0.5], "label": 3}).y
    3

    Raises:
      ValueError: if a key is missing.
    """
    missing = {"image", "label"} - set(ds_dict)
    if missing:
        raise ValueError(
            f"an example needs the keys 'image' and 'label', got {sorted(ds_dict)}."
        )
    return base.ArrayBatch(x=ds_dict["image"], y=ds_dict["label"])


def add_data_index_to_dataset(ds: Any) -> Any:
    """Returns the examples with data indices 0, 1, 2, ..., each an int64 scalar.

    Other fields stay. In every epoch of a repeated dataset an example has the same
    index.

    >>> import grain
    >>> from enn import datasets
    >>> rows = [datasets.ArrayBatch(x=k, y=k) for k in (5, 7)]
    >>> numbered = datasets.add_data_index_to_dataset(grain.MapDataset.source(rows))
    >>> [int(example.data_index) for example in numbered]
    [0, 1]

    Args:
      ds: a `grain.MapDataset` of `ArrayBatch`es. Where a filter left holes, their
        numbers are left out.
    """
    num_data = len(ds)

    def number(index: int, batch: base.ArrayBatch) -> base.ArrayBatch:
        return dataclasses.replace(batch, data_index=np.int64(index % num_data))

    return ds.map_with_index(number)


def get_per_device_batch_size(total_batch_size: int) -> int:
    """Returns the batch size of one of all devices, those of other processes too.

    >>> import jax
    >>> from enn import datasets
    >>> datasets.get_per_device_batch_size(6 * jax.device_count())
    6

    Raises:
      ValueError: unless `total_batch_size` is a multiple of the number of devices.
    """
    num_devices = jax.device_count()
    size, remainder = divmod(total_batch_size, num_devices)
    if remainder:
        raise ValueError(
            f"the batch size must be a multiple of the number of devices, got "
            f"{total_batch_size} for {num_devices} devices."
        )
    return size


def slice_dataset_to_batches(
    dataset: Any,
    total_batch_size: int,
    data_parallelism: bool,
    drop_remainder: bool = True,
) -> Any:
    """Returns batches of the examples, as a `grain.IterDataset`.

    With data parallelism each process is expected to feed its own part of the data: it
    makes batches for its local devices, of the size for one of all devices.

    >>> import grain, numpy as np
    >>> from enn import datasets
    >>> examples = grain.MapDataset.source(np.arange(5))
    >>> batches = datasets.slice_dataset_to_batches(examples, 2, data_parallelism=False)
    >>> [batch.tolist() for batch in batches]  # The last one is too short.
    [[0, 1], [2, 3]]

    Args:
      dataset: a `grain.MapDataset` or `grain.IterDataset` of pytrees.
      total_batch_size: number of examples of a batch, over all devices.
      data_parallelism: whether leaves are `[local_devices, batch / devices, ...]`
        rather than `[batch, ...]`.
      drop_remainder: whether to drop a last batch that is too short. With several
        local devices it is dropped in any case: its parts may differ in size.

    Raises:
      ValueError: with data parallelism, unless `total_batch_size` is a multiple of the
        number of devices.
    """
    grain = _extras.require("grain", "datasets")
    if isinstance(dataset, grain.MapDataset):
        dataset = dataset.to_iter_dataset()
    size = batch_rows(total_batch_size, data_parallelism)
    num_parts = jax.local_device_count() if data_parallelism else 1
    drop_remainder = drop_remainder or num_parts > 1
    batches = dataset.batch(size, drop_remainder=drop_remainder, batch_fn=stack)
    if not data_parallelism:
        return batches
    return batches.map(lambda batch: _split_axis(batch, num_parts))


def batch_rows(total_batch_size: int, data_parallelism: bool) -> int:
    """Returns the number of examples of a full batch of `slice_dataset_to_batches`."""
    if not data_parallelism:
        return total_batch_size
    return jax.local_device_count() * get_per_device_batch_size(total_batch_size)


def stack(examples: Sequence[Any]) -> Any:
    """Returns the examples, pytrees of one structure, stacked; of none, None."""
    if not examples:
        return None
    # Stacked views keep their strides, but only C order passes through shared memory.
    return jax.tree.map(lambda *xs: np.ascontiguousarray(np.stack(xs)), *examples)


def _split_axis(batch: Any, num_parts: int) -> Any:
    def split(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(num_parts, len(leaf) // num_parts, *leaf.shape[1:])

    return jax.tree.map(split, batch)


def select_rows(dataset: Any, rows: np.ndarray) -> Any:
    """Returns the grain dataset of `dataset[row]` for each of `rows`, in order.

    In later epochs of a repeated dataset, rows are of that epoch of `dataset` too: what
    is random in it is drawn anew.

    Args:
      dataset: a `grain.MapDataset`.
      rows: row numbers, `[num_rows]`.
    """
    grain = _extras.require("grain", "datasets")

    def lookup(index: int, position: int) -> Any:
        epoch = index // len(rows)
        return dataset[epoch * len(dataset) + int(rows[position])]

    return grain.MapDataset.range(len(rows)).map_with_index(lookup)


@dataclasses.dataclass(frozen=True)
class LabelSelection:
    """A transformer that picks examples by their labels.

    The image data sets know all labels and ask `rows` before they read an image. Called
    on another grain dataset, it reads every example once to see the labels.

    Attributes:
      rows: maps all labels, `[num_data]`, to the numbers of the rows to keep, in order.
    """

    rows: Callable[[np.ndarray], np.ndarray]

    def __call__(self, dataset: Any) -> Any:
        """Returns the picked rows of `dataset`, a `grain.MapDataset`."""
        examples = ((i, dataset[i]) for i in range(len(dataset)))
        # A filter leaves holes in a grain dataset: rows that are None.
        pairs = [(i, example.y) for i, example in examples if example is not None]
        numbers, labels = np.array(pairs, np.int64).reshape(-1, 2).T
        return select_rows(dataset, numbers[self.rows(labels)])


class OverrideTrainDataset(base.DatasetWithTransform):
    """A data set to evaluate on with the training data of another.

    >>> from enn import datasets
    >>> mixed = datasets.OverrideTrainDataset(datasets.Mnist(), datasets.FashionMnist())
    >>> mixed.new_dataset.hub_name, mixed.num_classes
    ('zalando-datasets/fashion_mnist', 10)
    >>> datasets.OverrideTrainDataset(datasets.Mnist(), datasets.Cifar100())
    Traceback (most recent call last):
        ...
    ValueError: the data sets must have the same number of classes, got 10 and 100.

    Attributes:
      original_dataset: gives everything but the training data.
      new_dataset: gives the training data.
    """

    def __init__(
        self, original_dataset: base.DatasetWithTransform, new_dataset: base.Dataset
    ):
        """Takes two data sets.

        Raises:
          ValueError: if they differ in their number of classes.
        """
        if original_dataset.num_classes != new_dataset.num_classes:
            raise ValueError(
                "the data sets must have the same number of classes, got "
                f"{original_dataset.num_classes} and {new_dataset.num_classes}."
            )
        super().__init__(
            original_dataset.train_ds_transformer,
            original_dataset.eval_ds_transformers,
        )
        self.original_dataset = original_dataset
        self.new_dataset = new_dataset

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.original_dataset.num_classes

    @property
    def eval_input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one evaluation example."""
        return self.original_dataset.eval_input_shape

    def train_dataset(self) -> base.ArrayBatchIterator:
        """Returns the training batches of the new data set."""
        return self.new_dataset.train_dataset()

    def eval_datasets(self) -> dict[str, base.ArrayBatchIterator]:
        """Returns the evaluation batches of the original data set."""
        return self.original_dataset.eval_datasets()
