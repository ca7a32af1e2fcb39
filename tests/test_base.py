import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import base, networks


def _apply(params, state, inputs, index):
    return params["w"]["w"] * inputs + jnp.sum(index), state


def _init(rng_key, inputs, index):
    return {"w": {"w": jnp.ones(())}}, {}


def _network():
    return base.EpistemicNetwork(_apply, _init, networks.GaussianIndexer(2))


@pytest.mark.parametrize(
    "protocol", [base.EpistemicIndexer, base.ApplyFn, base.InitFn, base.LossFn]
)
def test_protocols_tell_callables_apart_at_runtime(protocol):
    assert isinstance(_apply, protocol)
    assert not isinstance({}, protocol)


def test_a_network_holds_apply_init_and_indexer_in_this_order():
    enn = _network()
    assert (enn.apply, enn.init) == (_apply, _init)
    assert enn.indexer == networks.GaussianIndexer(2)
    with pytest.raises(TypeError, match="indexer"):
        base.EpistemicNetwork(_apply, _init)  # pyrefly: ignore[missing-argument]


def test_the_indexer_of_a_network_may_be_reassigned():
    enn = _network()
    enn.indexer = networks.PrngIndexer()
    assert enn.indexer(3) == 3


def test_networks_compare_and_hash_by_identity():
    enn, other = _network(), _network()
    assert len({enn, other, enn}) == 2
    assert enn != other


@pytest.mark.parametrize(
    "make",
    [
        _network,
        lambda: networks.MLPEnsembleMatchedPrior([2], num_ensemble=2),
        lambda: networks.epinet.make_mlp_epinet([2], [], 2),
    ],
)
def test_networks_are_static_arguments_of_jit(make):
    enn, x, key = make(), jnp.ones((1, 2)), jax.random.PRNGKey(0)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def predict(enn, inputs):
        traces.append(enn)
        index = enn.indexer(key)
        params, state = enn.init(key, inputs, index)
        return networks.parse_net_output(enn.apply(params, state, inputs, index)[0])

    assert predict(enn, x).shape == predict(enn, 2 * x).shape == (1, 2)
    assert traces == [enn]


def test_networks_without_state_hash_by_identity():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    enns = [networks.Ensemble(net, 2) for _ in range(2)]
    assert len(set(enns)) == 2


def test_subscripted_aliases_build_and_base_networks():
    enn = networks.EnnArray(_apply, _init, networks.PrngIndexer())
    assert isinstance(enn, base.EpistemicNetwork)

    class Doubled(networks.EnnArray):
        def __init__(self):
            super().__init__(_apply, _init, networks.PrngIndexer())

    assert isinstance(Doubled(), base.EpistemicNetwork)
    out, state = Doubled().apply({"w": {"w": 2.0}}, {}, np.ones(3), 1.0)
    np.testing.assert_array_equal(out, [3, 3, 3])
    assert state == {}
