import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses
from enn.networks.adapters.from_equinox import from_equinox
from enn.networks.bert.cls_heads import AgentConfig, make_head_enn
from enn.networks.combiners import combine_naive_enn
from enn.networks.indexers import GaussianIndexer, PrngIndexer
from tests.support.cost import flops_at_indices
from tests.support.fast import compiled, key, random_params
from tests.support.training import X, assert_learns

eqx = pytest.importorskip("equinox")


def _mlp(key):
    return eqx.nn.MLP(3, 2, 16, 1, key=key)


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 16, key=first)
        self.norm = eqx.nn.BatchNorm(16, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.1)
        self.last = eqx.nn.Linear(16, 2, key=last)

    def __call__(self, x, state, *, key=None):
        hidden, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(hidden), key=key)), state


class Concat(eqx.Module):
    """An index MLP, with a table of integers as a constant."""

    mlp: eqx.nn.MLP
    order: jax.Array

    def __init__(self, key):
        self.mlp = eqx.nn.MLP(3 + 4, 2, 16, 1, key=key)
        self.order = jnp.arange(7)[::-1]

    def __call__(self, x, index):
        return self.mlp(jnp.concatenate([x, index])[self.order])


def _stateful(key):
    return eqx.nn.make_with_state(Net)(key)


def _inference(key):
    module, state = _stateful(key)
    return eqx.nn.inference_mode(module), state


def _init(enn, index):
    return compiled(enn.init)(key(0), X, index)


def test_is_the_module_over_the_batch():
    enn = from_equinox(_mlp)
    assert isinstance(enn.indexer, PrngIndexer)
    params, state = _init(enn, key(1))
    assert jax.tree.map(jnp.shape, params) == {
        "MLP/layers/0": {"weight": (16, 3), "bias": (16,)},
        "MLP/layers/1": {"weight": (2, 16), "bias": (2,)},
    }
    out, new_state = compiled(enn.apply)(params, state, X, key(1))
    assert state == new_state == {}
    np.testing.assert_allclose(
        out,
        compiled(lambda k, x: jax.vmap(_mlp(k))(x))(key(0), X),
        rtol=1e-5,
        atol=1e-6,
    )


def test_arrays_go_back_into_the_module():
    enn = from_equinox(_inference)
    params, state = _init(enn, key(1))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    module, module_state = enn.module(params, state)
    assert isinstance(module, Net)
    np.testing.assert_array_equal(module.first.weight, params["Net/first"]["weight"])
    over_batch = jax.vmap(module, (0, None), (0, None), axis_name="batch")
    expected, _ = compiled(over_batch)(X, module_state)
    out, _ = compiled(enn.apply)(params, state, X, key(1))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    stateless = from_equinox(_mlp)
    assert stateless.module(*random_params(stateless, X))[1] is None


def test_state_is_updated():
    enn = from_equinox(_stateful)
    params, state = _init(enn, key(1))
    _, new_state = compiled(enn.apply)(params, state, X, key(2))
    leaves = zip(jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True)
    for new, old in leaves:
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert not np.array_equal(new, old)
        assert not old.weak_type
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.strict
@pytest.mark.parametrize("key_fn", [jax.random.key, jax.random.PRNGKey])
def test_index_is_the_key_of_dropout_for_the_whole_batch(key_fn):
    class Masked(eqx.Module):
        dropout: eqx.nn.Dropout

        def __call__(self, x, *, key=None):
            return self.dropout(x, key=key)

    enn = from_equinox(lambda _: Masked(eqx.nn.Dropout(0.5)))
    inputs = jnp.ones([5, 30])
    outs = [enn.apply({}, {}, inputs, key_fn(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert not np.array_equal(outs[0], outs[2])
    np.testing.assert_array_equal(outs[0], np.repeat(outs[0][:1], 5, 0))


def test_module_with_an_index():
    enn = from_equinox(Concat, GaussianIndexer(4))
    index = enn.indexer(key(1))
    params, state = _init(enn, index)
    assert set(params) == {"Concat/mlp/layers/0", "Concat/mlp/layers/1"}
    np.testing.assert_array_equal(state["Concat"]["order"], np.arange(7)[::-1])
    out, _ = compiled(enn.apply)(params, state, X, index)
    apply = compiled(lambda k, *args: jax.vmap(Concat(k), (0, None))(*args))
    expected = apply(key(0), X, index)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_module_with_an_index_and_state():
    class Counting(eqx.Module):
        counter: eqx.nn.StateIndex

        def __init__(self):
            self.counter = eqx.nn.StateIndex(jnp.array(0))

        def __call__(self, x, index, state):
            return x * index, state.set(self.counter, state.get(self.counter) + 1)

    enn = from_equinox(lambda _: eqx.nn.make_with_state(Counting)(), GaussianIndexer(3))
    params, state = _init(enn, jnp.ones(3))
    for _ in range(2):
        out, state = compiled(enn.apply)(params, state, X, jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(out, X * [1, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(jax.tree.leaves(state), [2])


@pytest.mark.slow
def test_training_then_inference_with_the_same_parameters():
    trained = assert_learns(from_equinox(_stateful))
    enn = from_equinox(_inference)
    args = (trained.params, trained.network_state, X)
    outs = [compiled(enn.apply)(*args, key(seed)) for seed in (1, 2)]
    np.testing.assert_array_equal(outs[0][0], outs[1][0])
    jax.tree.map(np.testing.assert_array_equal, outs[0][1], trained.network_state)


def test_training_starts_from_a_trained_module_and_leaves_it_alone():
    module = _mlp(key(5))
    before = np.array(module.layers[0].weight)
    enn = from_equinox(lambda _: module)
    params, _ = enn.init(key(0), X, key(1))
    np.testing.assert_array_equal(params["MLP/layers/0"]["weight"], before)
    assert_learns(enn)
    np.testing.assert_array_equal(module.layers[0].weight, before)


def test_training_an_index_module():
    assert_learns(from_equinox(Concat, GaussianIndexer(4)))


def test_weight_decay_picks_parameters_by_name():
    params, _ = random_params(from_equinox(_mlp), X)
    decay = losses.l2_weights_with_predicate(params, lambda *p: p[1] == "weight")
    expected = sum(np.sum(params[m]["weight"] ** 2) for m in params)
    np.testing.assert_allclose(decay, expected, rtol=1e-5)


def test_without_randomness_all_indices_run_once():
    enn = from_equinox(_inference)
    assert flops_at_indices(enn, X, 100) == flops_at_indices(enn, X, 1)


def test_as_the_base_of_an_epinet():
    head = make_head_enn("epinet", 2, AgentConfig((5,), index_dim=3))
    enn = combine_naive_enn(head, from_equinox(_stateful))
    params, state = _init(enn, key(1))
    out, new_state = compiled(enn.apply)(params, state, X, key(2))
    assert out.preds.shape == (16, 2)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_wrong_modules():
    with pytest.raises(ValueError, match="lambda key: module"):
        from_equinox(_mlp(key(0)))
    with pytest.raises(ValueError, match=r"must make an eqx\.Module, got 3"):
        from_equinox(lambda _: 3)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ImportError, match=r'equinox: pip install "enn\[equinox\]"'):
        from_equinox(_mlp)
