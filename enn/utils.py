"""Batches of indices and of data, under the names that research code imports."""

from enn.datasets.in_memory import make_batch_iterator, process_shard
from enn.datasets.toy import make_test_data
from enn.networks.indexers import make_batch_indexer

__all__ = [
    "make_batch_indexer",
    "make_batch_iterator",
    "make_test_data",
    "process_shard",
]
