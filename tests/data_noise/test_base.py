import types

import jax.numpy as jnp
import numpy as np
import pytest

from enn import data_noise
from enn.data_noise.base import get_indexer
from enn.networks import indexers
from tests.data_noise import stubs
from tests.support import golden


def test_get_indexer_unwraps_all_layers():
    inner = indexers.GaussianIndexer(2)
    wrapped = types.SimpleNamespace(indexer=types.SimpleNamespace(indexer=inner))
    assert get_indexer(wrapped) is inner
    assert get_indexer(inner) is inner


def test_get_indexer_unwraps_a_network():
    indexer = indexers.PrngIndexer()
    assert get_indexer(stubs.network(indexer)) is indexer


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (lambda enn: data_noise.BootstrapNoise(enn, "exponential"), "weights"),
        (lambda enn: data_noise.GaussianTargetNoise(enn, 0.5), "y"),
    ],
)
def test_noise_changes_one_field_of_a_new_batch(make, changed):
    batch = golden.batch("regression").replace(
        weights=np.ones([6, 1]), extra={"row": np.arange(6)}
    )
    given = batch.replace()
    noise: data_noise.DataNoise = make(stubs.network(indexers.EnsembleIndexer(3)))
    noisy = noise(data=batch, index=jnp.array(1))
    for field in ("x", "y", "data_index", "weights", "extra"):
        assert getattr(batch, field) is getattr(given, field)
        if field == changed:
            assert noisy[field].shape == (6, 1)
            assert not np.any(noisy[field] == batch[field])
        else:
            assert noisy[field] is batch[field]
