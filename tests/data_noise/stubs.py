"""Networks of which only the indexer matters, and rows of data."""

import jax
import jax.numpy as jnp
import numpy as np

from enn import base
from enn.networks import indexers

IDS = np.arange(4)[:, None]


def network(indexer):
    def unused(*args):
        raise AssertionError("data noise runs no network")

    return base.EpistemicNetwork(unused, unused, indexer)


def over_indices(fn, indexer, num_indices=200):
    """What `fn` of row ids and index gives for 400 rows at many indices."""

    @jax.jit
    def run(keys):
        ensemble = isinstance(indexer, indexers.EnsembleIndexer)
        zs = jnp.arange(indexer.num_ensemble) if ensemble else jax.vmap(indexer)(keys)
        return jax.vmap(fn, in_axes=(None, 0))(jnp.arange(400)[:, None], zs)

    return np.asarray(run(jax.random.split(jax.random.key(0), num_indices)))


def correlation(first, second):
    return np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
