"""Data: batches, iterators over in-memory arrays, and image data sets.

The image data sets load on first use; they need the extra `datasets`. Hugging Face
`datasets` stores the images and grain reads them: every step is fixed by the seed, and
batches do not depend on how many workers read. See `Mnist`, `Cifar10`, `Cifar100`,
`Imagenet`.
"""

import importlib
from typing import Any

from enn.datasets.base import (
    EVAL_TRANSFORMERS_DEFAULT,
    ArrayBatch,
    ArrayBatchIterator,
    DataIndex,
    Dataset,
    DatasetTransformer,
    DatasetWithTransform,
    OodVariant,
)
from enn.datasets.in_memory import (
    BatchIterator,
    make_batch_iterator,
    process_shard,
)
from enn.datasets.toy import make_moons, make_regression_data, make_test_data

_LAZY: dict[str, tuple[str, str]] = {
    "BatchStream": ("pipeline", "BatchStream"),
    "Cifar": ("cifar", "Cifar"),
    "Cifar10": ("cifar", "Cifar10"),
    "Cifar100": ("cifar", "Cifar100"),
    "Cifar10Split": ("cifar", "Split"),
    "CifarVariant": ("cifar", "CifarVariant"),
    "FashionMnist": ("mnist", "FashionMnist"),
    "IMAGENET_MAX_NUM_TRAIN": ("imagenet", "MAX_NUM_TRAIN"),
    "Imagenet": ("imagenet", "Imagenet"),
    "ImagenetSplit": ("imagenet", "Split"),
    "Mnist": ("mnist", "Mnist"),
    "MnistSplit": ("mnist", "Split"),
    "OverrideTrainDataset": ("utils", "OverrideTrainDataset"),
    "PerturbFn": ("transforms.local_sample", "PerturbFn"),
    "add_data_index_to_dataset": ("utils", "add_data_index_to_dataset"),
    "change_ds_dict_to_enn_batch": ("utils", "change_ds_dict_to_enn_batch"),
    "get_dataset_transform_from_type": (
        "transforms.ood",
        "get_dataset_transform_from_type",
    ),
    "get_per_device_batch_size": ("utils", "get_per_device_batch_size"),
    "make_dyadic_transform": ("transforms.local_sample", "make_dyadic_transform"),
    "make_ood_transformers": ("transforms.ood", "make_ood_transformers"),
    "make_repeat_sample_transform": (
        "transforms.local_sample",
        "make_repeat_sample_transform",
    ),
    "sample_classes": ("transforms.ood", "sample_classes"),
    "slice_dataset_to_batches": ("utils", "slice_dataset_to_batches"),
}
"""Public name, to be listed in `__all__` too: its module, and its name there."""

__all__ = (
    "EVAL_TRANSFORMERS_DEFAULT",
    "IMAGENET_MAX_NUM_TRAIN",
    "ArrayBatch",
    "ArrayBatchIterator",
    "BatchIterator",
    "BatchStream",
    "Cifar",
    "Cifar10",
    "Cifar10Split",
    "Cifar100",
    "CifarVariant",
    "DataIndex",
    "Dataset",
    "DatasetTransformer",
    "DatasetWithTransform",
    "FashionMnist",
    "Imagenet",
    "ImagenetSplit",
    "Mnist",
    "MnistSplit",
    "OodVariant",
    "OverrideTrainDataset",
    "PerturbFn",
    "add_data_index_to_dataset",
    "change_ds_dict_to_enn_batch",
    "get_dataset_transform_from_type",
    "get_per_device_batch_size",
    "make_batch_iterator",
    "make_dyadic_transform",
    "make_moons",
    "make_ood_transformers",
    "make_regression_data",
    "make_repeat_sample_transform",
    "make_test_data",
    "process_shard",
    "sample_classes",
    "slice_dataset_to_batches",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(f"enn.datasets.{module}"), attribute)
    raise AttributeError(f"module 'enn.datasets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
