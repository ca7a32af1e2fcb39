"""Rows of a grain dataset picked by number or by label."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from enn import _extras


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
