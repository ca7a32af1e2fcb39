import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.adapters.from_flax import from_flax
from enn.networks.bert.cls_heads import AgentConfig, make_head_enn
from enn.networks.combiners import combine_naive_enn
from enn.networks.indexers import EnsembleIndexer, GaussianIndexer, PrngIndexer
from tests.support.cost import flops_at_indices
from tests.support.fast import compiled, key
from tests.support.training import X, assert_learns

nn = pytest.importorskip("flax.linen")


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        hidden = nn.Dense(16)(inputs)
        hidden = nn.BatchNorm(use_running_average=not train)(hidden)
        hidden = nn.Dropout(0.2, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(2)(hidden)


class Concat(nn.Module):
    """An index MLP."""

    @nn.compact
    def __call__(self, inputs, index):
        hidden = nn.Dense(16)(inputs) + nn.Dense(16, use_bias=False)(index)[None]
        return nn.Dense(2)(nn.relu(hidden))


class Noise(nn.Module):
    """Two random streams under one index."""

    @nn.compact
    def __call__(self, inputs):
        shape = (len(inputs), 500)
        return jnp.stack(
            [
                jax.random.normal(self.make_rng(stream), shape)
                for stream in ("dropout", "noise")
            ]
        )


MLP = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(2)])


def _init(enn, index):
    return compiled(enn.init)(key(0), X, index)


@pytest.mark.slow
def test_is_the_module_with_its_own_variables():
    enn = from_flax(Net(), train=True)
    assert isinstance(enn.indexer, PrngIndexer)
    params, state = _init(enn, key(1))
    variables = Net().init(key(0), X, train=True)
    np.testing.assert_allclose(
        params["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"], rtol=1e-6
    )
    assert jax.tree.structure({"params": params, **state}) == jax.tree.structure(
        variables
    )
    out, new_state = enn.apply(params, state, X, key(2))
    expected, updates = Net().apply(
        {"params": params, **state},
        X,
        train=True,
        rngs={"dropout": key(2)},
        mutable=["batch_stats"],
    )
    np.testing.assert_array_equal(out, expected)
    jax.tree.map(np.testing.assert_array_equal, new_state, updates)
    assert not np.array_equal(
        new_state["batch_stats"]["BatchNorm_0"]["mean"],
        state["batch_stats"]["BatchNorm_0"]["mean"],
    )


@pytest.mark.strict
@pytest.mark.parametrize("key_fn", [jax.random.key, jax.random.PRNGKey])
def test_index_is_the_key_of_dropout(key_fn):
    enn = from_flax(Net(), train=True)
    params, state = _init(enn, key_fn(1))
    apply = compiled(enn.apply)
    outs = [apply(params, state, X, key_fn(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.abs(outs[0] - outs[2]).max() > 0.01


def test_every_random_stream_has_a_key_of_its_own():
    enn = from_flax(Noise())
    params, state = _init(enn, key(1))
    assert params == state == {}
    first, second = compiled(enn.apply)(params, state, X, key(2))[0]
    correlation = np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
    assert abs(correlation) < 0.05


def test_module_with_an_index():
    enn = from_flax(Concat(), GaussianIndexer(4))
    index = enn.indexer(key(1))
    params, state = _init(enn, index)
    out, new_state = compiled(enn.apply)(params, state, X, index)
    assert state == new_state == {}
    np.testing.assert_allclose(
        out, Concat().apply({"params": params}, X, index), rtol=1e-6
    )


def test_module_with_an_index_may_use_it_as_a_key_too():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, inputs, index):
            return nn.Dropout(0.5, deterministic=False)(inputs, rng=index)

    enn = from_flax(Masked(), PrngIndexer())
    out, _ = enn.apply({}, {}, X, key(1))
    np.testing.assert_allclose(out[out != 0], 2 * X[out != 0])


@pytest.mark.slow
def test_training_then_evaluation_with_the_same_parameters():
    trained = assert_learns(from_flax(Net(), train=True))
    enn = from_flax(Net(), train=False)
    args = (trained.params, trained.network_state, X)
    outs = [compiled(enn.apply)(*args, key(seed)) for seed in (1, 2)]
    np.testing.assert_array_equal(outs[0][0], outs[1][0])
    jax.tree.map(np.testing.assert_array_equal, outs[0][1], trained.network_state)
    mean = trained.network_state["batch_stats"]["BatchNorm_0"]["mean"]
    expected = (X @ trained.params["Dense_0"]["kernel"]).mean(0)
    expected = expected + trained.params["Dense_0"]["bias"]
    np.testing.assert_allclose(mean, expected, atol=0.3)


def test_training_an_index_module():
    assert_learns(from_flax(Concat(), GaussianIndexer(4)))


def test_without_randomness_all_indices_run_once():
    enn = from_flax(MLP)
    assert flops_at_indices(enn, X, 100) == flops_at_indices(enn, X, 1)


@pytest.mark.slow
def test_as_the_base_of_an_epinet():
    base = from_flax(Net(), train=True)
    head = make_head_enn("epinet", 2, AgentConfig((5,), index_dim=3))
    enn = combine_naive_enn(head, base)
    params, state = _init(enn, key(1))
    out, new_state = compiled(enn.apply)(params, state, X, key(2))
    assert out.preds.shape == (16, 2)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    _, base_state = base.apply(params, state, X, key(2))
    jax.tree.map(
        lambda *leaves: np.testing.assert_allclose(*leaves, rtol=1e-5),
        new_state["batch_stats"],
        base_state["batch_stats"],
    )


def test_wrong_modules():
    for module in (Net, lambda x: x):
        with pytest.raises(ValueError, match=r"instance of flax\.linen\.Module"):
            from_flax(module)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax.linen", None)
    with pytest.raises(ImportError, match=r'flax: pip install "enn\[flax\]"'):
        from_flax(MLP, EnsembleIndexer(2))
