import types

from enn import base, data_noise
from enn.data_noise.base import get_indexer
from enn.networks import indexers
from tests.data_noise import stubs


def test_get_indexer_unwraps_all_layers():
    inner = indexers.GaussianIndexer(2)
    wrapped = types.SimpleNamespace(indexer=types.SimpleNamespace(indexer=inner))
    assert get_indexer(wrapped) is inner
    assert get_indexer(inner) is inner


def test_get_indexer_unwraps_a_network():
    indexer = indexers.PrngIndexer()
    assert get_indexer(stubs.network(indexer)) is indexer


def test_noise_satisfies_the_protocol():
    enn = stubs.network(indexers.EnsembleIndexer(3))
    assert isinstance(data_noise.BootstrapNoise(enn, "none"), data_noise.DataNoiseBase)
    assert not isinstance(base, data_noise.DataNoiseBase)
