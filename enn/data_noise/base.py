"""What data noise is: a change of the data that depends on the epistemic index.

The same row gets the same draw in every batch: the keys of rows are here.
"""

import functools
from typing import Any, Protocol, TypeVar, runtime_checkable

import chex
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.datasets import base as datasets
from enn.networks import indexers

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


def row_ids(data_index: datasets.DataIndex | None) -> jax.Array:
    """Returns the ids of the rows, int32 `[batch]`.

    Raises:
      ValueError: if `data_index` is None or neither `[batch, 1]` nor `[batch]`.
    """
    if data_index is None:
        raise ValueError(
            "data_index is missing: data noise needs the ids of the rows. "
            "make_batch_iterator adds them, or pass ArrayBatch(data_index=...)."
        )
    return jnp.asarray(_checks.as_column("data_index", data_index), jnp.int32)[:, 0]


def make_row_keys(
    indexer: Any,
    data_index: datasets.DataIndex | None,
    index: base.Index,
    seed: int,
    stream: int | None,
) -> chex.PRNGKey:
    """Returns one typed key for each row, `[batch]`, whatever JAX's default generator.

    The keys of an ensemble differ by member and those of a `PrngIndexer` by index;
    for a vector index they depend on the row alone.

    Args:
      indexer: the innermost indexer of the network.
      data_index: ids of the rows, `[batch, 1]`.
      index: an epistemic index; of an ensemble also `[batch]`, a member for each row.
      seed: fixes the keys.
      stream: None for the keys of the original `enn`, in which only the sum of seed
        and row id counts; else a number, and every (stream, seed, id) has keys
        independent of all others.
    """
    ids = row_ids(data_index)
    if isinstance(indexer, indexers.PrngIndexer):
        return _fold_in_rows(indexers.as_threefry(index), ids, seed, stream)
    make_key = functools.partial(jax.random.key, impl=indexers.THREEFRY)
    if stream is None:
        keys = jax.vmap(make_key)(ids + seed)
    else:
        keys = _fold_in_rows(make_key(0), ids, seed, stream)
    if isinstance(indexer, indexers.EnsembleIndexer):
        return jax.vmap(jax.random.fold_in)(keys, _members(index, len(ids)))
    _checks.shape("index", index, (indexer.index_dim,), "[index_dim]")
    return keys


def _fold_in_rows(
    key: chex.PRNGKey, ids: jax.Array, seed: int, stream: int | None
) -> chex.PRNGKey:
    if stream is None:
        ids = ids + seed
    else:
        key = jax.random.fold_in(jax.random.fold_in(key, stream), jnp.int32(seed))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def _members(index: base.Index, batch: int) -> jax.Array:
    if getattr(index, "shape", None) not in [(), (batch,)]:
        raise ValueError(
            f"index of an ensemble must be an array of shape [] or [{batch}], one "
            f"for each row; got {index!r}."
        )
    return jnp.broadcast_to(index, [batch])
