import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.adapters.from_nnx import from_nnx
from enn.networks.bert.cls_heads import AgentConfig, make_head_enn
from enn.networks.combiners import combine_naive_enn
from enn.networks.indexers import GaussianIndexer, PrngIndexer
from tests.support.cost import flops_at_indices
from tests.support.fast import compiled, key
from tests.support.training import X, assert_learns

nnx = pytest.importorskip("flax.nnx")


class Net(nnx.Module):
    def __init__(self, rngs, rate=0.1):
        self.layers = nnx.List(
            [nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, inputs):
        hidden = nnx.relu(self.norm(self.layers[0](inputs)))
        self.hidden = nnx.Intermediate(hidden)
        return self.layers[1](self.dropout(hidden))


class Concat(nnx.Module):
    """An index MLP."""

    def __init__(self, rngs):
        self.x_part = nnx.Linear(3, 16, rngs=rngs)
        self.z_part = nnx.Linear(4, 16, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, inputs, index):
        return self.last(nnx.relu(self.x_part(inputs) + self.z_part(index)[None]))


class TwoDropouts(nnx.Module):
    def __init__(self, rngs):
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def __call__(self, inputs):
        return jnp.stack([dropout(inputs) for dropout in self.dropouts])


def _evaluated(rngs):
    module = Net(rngs)
    module.eval()
    return module


def _init(enn, index):
    return compiled(enn.init)(key(0), X, index)


def test_is_the_module_with_its_own_arrays():
    enn = from_nnx(_evaluated)
    assert isinstance(enn.indexer, PrngIndexer)
    params, state = _init(enn, key(1))
    assert jax.tree.map(jnp.shape, params) == {
        "layers": {
            0: {"kernel": (3, 16), "bias": (16,)},
            1: {"kernel": (16, 2), "bias": (2,)},
        },
        "norm": {"scale": (16,), "bias": (16,)},
    }
    assert jax.tree.map(jnp.shape, state) == {"norm": {"mean": (16,), "var": (16,)}}
    module = _evaluated(nnx.Rngs(key(0)))
    np.testing.assert_allclose(
        params["layers"][0]["kernel"], module.layers[0].kernel[...], rtol=1e-6
    )
    out, _ = compiled(enn.apply)(params, state, X, key(1))
    np.testing.assert_allclose(out, module(X), rtol=1e-5, atol=1e-6)


def test_arrays_go_back_into_a_module():
    enn = from_nnx(_evaluated)
    params, state = _init(enn, key(1))
    state = jax.tree.map(lambda leaf: leaf + 1, state)
    module = _evaluated(nnx.Rngs(7))
    nnx.update(module, params, state)
    out, _ = compiled(enn.apply)(params, state, X, key(1))
    np.testing.assert_allclose(out, module(X), rtol=1e-5, atol=1e-6)


def test_state_is_updated():
    enn = from_nnx(Net)
    params, state = _init(enn, key(1))
    _, new_state = compiled(enn.apply)(params, state, X, key(2))
    module = Net(nnx.Rngs(0))
    nnx.update(module, params, state)
    module(X)
    np.testing.assert_allclose(
        new_state["norm"]["mean"], module.norm.mean[...], rtol=1e-4, atol=1e-6
    )
    assert np.abs(new_state["norm"]["mean"]).max() > 0
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.strict
@pytest.mark.parametrize("key_fn", [jax.random.key, jax.random.PRNGKey])
def test_index_is_the_key_of_dropout(key_fn):
    enn = from_nnx(Net)
    params, state = _init(enn, key_fn(1))
    apply = compiled(enn.apply)
    outs = [apply(params, state, X, key_fn(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.abs(outs[0] - outs[2]).max() > 0.01


def test_every_random_stream_has_a_key_of_its_own():
    enn = from_nnx(TwoDropouts)
    inputs = jnp.ones([20, 100])
    params, state = enn.init(key(0), inputs, key(1))
    assert params == state == {}
    first, second = enn.apply({}, {}, inputs, key(2))[0]
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.1


def test_streams_that_a_vectorised_module_splits():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Net(rngs)

    class Stacked(nnx.Module):
        def __init__(self, rngs):
            self.members = make(rngs)

        def __call__(self, inputs):
            return nnx.vmap(lambda net, x: net(x), in_axes=(0, None))(
                self.members, inputs
            )

    enn = from_nnx(Stacked)
    params, state = _init(enn, key(1))
    outs, _ = compiled(enn.apply)(params, state, X, key(2))
    assert outs.shape == (3, 16, 2)
    assert len(np.unique(params["members"]["layers"][0]["kernel"], axis=0)) == 3


def test_module_with_an_index():
    enn = from_nnx(Concat, GaussianIndexer(4))
    index = enn.indexer(key(1))
    params, state = _init(enn, index)
    out, new_state = compiled(enn.apply)(params, state, X, index)
    assert state == new_state == {}
    expected = Concat(nnx.Rngs(key(0)))(X, index)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_training_then_evaluation_with_the_same_parameters():
    trained = assert_learns(from_nnx(Net))
    enn = from_nnx(_evaluated)
    args = (trained.params, trained.network_state, X)
    outs = [compiled(enn.apply)(*args, key(seed))[0] for seed in (1, 2)]
    np.testing.assert_array_equal(*outs)


def test_training_starts_from_a_trained_module_and_leaves_it_alone():
    module = Net(nnx.Rngs(5))
    before = np.array(module.layers[0].kernel[...])
    enn = from_nnx(lambda _: module)
    params, _ = enn.init(key(0), X, key(1))
    np.testing.assert_array_equal(params["layers"][0]["kernel"], before)
    assert_learns(enn)
    np.testing.assert_array_equal(module.layers[0].kernel[...], before)


def test_training_an_index_module():
    assert_learns(from_nnx(Concat, GaussianIndexer(4)))


def test_without_randomness_all_indices_run_once():
    enn = from_nnx(_evaluated)
    assert flops_at_indices(enn, X, 100) == flops_at_indices(enn, X, 1)


@pytest.mark.slow
def test_as_the_base_of_an_epinet():
    head = make_head_enn("epinet", 2, AgentConfig((5,), index_dim=3))
    enn = combine_naive_enn(head, from_nnx(Net))
    params, state = _init(enn, key(1))
    out, new_state = compiled(enn.apply)(params, state, X, key(2))
    assert out.preds.shape == (16, 2)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert np.abs(new_state["norm"]["mean"]).max() > 0


def test_wrong_modules():
    with pytest.raises(ValueError, match="lambda rngs: module"):
        from_nnx(Net(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"must make an nnx\.Module, got 3"):
        from_nnx(lambda _: 3)


def test_random_streams_need_a_key_as_index():
    with pytest.raises(ValueError, match=r"must be a PRNG key, .*GaussianIndexer"):
        from_nnx(Net, GaussianIndexer(4))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax.nnx", None)
    with pytest.raises(ImportError, match=r'flax: pip install "enn\[flax\]"'):
        from_nnx(Net)
