"""What data noise is: a change of the data that depends on the epistemic index."""

from typing import Any, Protocol, TypeVar, runtime_checkable

from enn import base
from enn.datasets import base as datasets

_Data = TypeVar("_Data")


@runtime_checkable
class DataNoiseBase(Protocol[_Data]):
    """Perturbs data, so that each epistemic index trains on data of its own."""

    def __call__(self, data: _Data, index: base.Index) -> _Data:
        """Returns `data` as the member or sample `index` sees them."""
        ...


DataNoise = DataNoiseBase[datasets.ArrayBatch]


def get_indexer(indexer: Any) -> Any:
    """Returns the innermost indexer, following attributes called `indexer`.

    Args:
      indexer: an indexer, or a network, for the one that it has.
    """
    while hasattr(indexer, "indexer"):
        indexer = indexer.indexer
    return indexer
