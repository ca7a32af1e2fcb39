"""Data: batches, iterators over arrays in memory, and image data sets.

The image data sets load on first use.
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
from enn.datasets.in_memory import BatchIterator, make_batch_iterator
from enn.datasets.toy import make_moons, make_regression_data, make_test_data

_LAZY: dict[str, tuple[str, str]] = {}
"""Public name, to be listed in `__all__` too: its module, and its name there."""

__all__ = (
    "EVAL_TRANSFORMERS_DEFAULT",
    "ArrayBatch",
    "ArrayBatchIterator",
    "BatchIterator",
    "DataIndex",
    "Dataset",
    "DatasetTransformer",
    "DatasetWithTransform",
    "OodVariant",
    "make_batch_iterator",
    "make_moons",
    "make_regression_data",
    "make_test_data",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(f"enn.datasets.{module}"), attribute)
    raise AttributeError(f"module 'enn.datasets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
