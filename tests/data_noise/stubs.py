"""Networks of which only the indexer matters, and rows of data."""

import jax
import jax.numpy as jnp
import numpy as np

from enn import base, datasets
from tests import golden

IDS = jnp.arange(4)[:, None]


def network(indexer):
    def unused(*args):
        raise AssertionError("data noise runs no network")

    return base.EpistemicNetwork(unused, unused, indexer)


def golden_batch(y):
    return datasets.ArrayBatch(x=golden.X5, y=y, data_index=jnp.arange(6)[:, None] + 3)


def indices(indexer, num_indices):
    """Many indices, stacked."""
    return jax.vmap(indexer)(jax.random.split(jax.random.key(0), num_indices))


def correlation(first, second):
    return np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
