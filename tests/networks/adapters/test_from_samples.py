import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.adapters.from_samples import from_network_samples, from_samples
from enn.networks.forwarders import make_batch_fwd
from enn.networks.indexers import EnsembleIndexer
from tests.support.cost import flops
from tests.support.fast import key
from tests.support.training import X, assert_learns


def _linear(params, inputs):
    return inputs @ params["w"] + params["b"][None]


def _samples(num_samples=5):
    draw = np.random.default_rng(1)
    return {
        "w": draw.normal(size=(num_samples, 3, 2)).astype(np.float32),
        "b": draw.normal(size=(num_samples, 2)).astype(np.float32),
    }


@pytest.mark.strict
def test_index_picks_a_sample():
    samples = _samples()
    enn = from_samples(_linear, samples)
    assert enn.indexer == EnsembleIndexer(5)
    params, state = enn.init(key(0), X, 0)
    assert state == {}
    for i in range(5):
        out, new_state = jax.jit(enn.apply)(params, state, X, i)
        expected = X @ samples["w"][i] + samples["b"][i]
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
        assert new_state == {}


def test_predictive_mean_is_that_of_the_samples():
    samples = _samples()
    enn = from_samples(_linear, samples)
    params, state = enn.init(key(0), X, 0)
    outs = jax.vmap(enn.apply, (None, None, None, 0))(params, state, X, np.arange(5))[0]
    mean = X @ samples["w"].mean(0) + samples["b"].mean(0)
    np.testing.assert_allclose(outs.mean(0), mean, rtol=1e-4, atol=1e-5)
    assert make_batch_fwd(enn, 7)(params, state, X).shape == (7, 16, 2)


def test_samples_of_any_tree():
    stacked = (jnp.ones([2, 3, 2]), [jnp.zeros([2, 2])])
    enn = from_samples(lambda p, x: x @ p[0] + p[1][0][None], stacked)
    params, state = enn.init(key(0), X, 0)
    out, _ = enn.apply(params, state, X, 1)
    np.testing.assert_allclose(out, np.repeat(X.sum(1)[:, None], 2, 1), rtol=1e-5)


def test_init_returns_a_copy():
    samples = jax.tree.map(jnp.asarray, _samples())
    params, _ = from_samples(_linear, samples).init(key(0), X, 0)
    jax.tree.map(np.testing.assert_array_equal, params, samples)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    assert np.isfinite(samples["w"]).all()


def test_many_indices_run_each_sample_once():
    enn = from_samples(_linear, _samples())
    params, state = enn.init(key(0), X, 0)

    def forward(indices):
        return jax.vmap(enn.apply, (None, None, None, 0))(params, state, X, indices)[0]

    # What remains is picking outputs: far below one product an index.
    cost = flops(forward, jnp.zeros(500, int))
    assert cost < 0.2 * 500 * flops(
        _linear, {"w": params["w"][0], "b": params["b"][0]}, X
    )


def test_samples_train_on_as_an_ensemble():
    def apply(params, inputs):
        return _linear(params, jnp.concatenate([inputs, inputs**2], axis=1))

    draw = np.random.default_rng(2)
    samples = {"w": draw.normal(size=(3, 6, 2)), "b": draw.normal(size=(3, 2))}
    assert_learns(from_samples(apply, jax.tree.map(np.float32, samples)))


@pytest.mark.parametrize(
    "stacked",
    [
        {"w": np.ones([5, 3, 2]), "b": np.ones([4, 2])},
        {"w": np.ones([5, 3, 2]), "b": 1.0},
        {"w": np.ones([0, 3, 2])},
        {},
    ],
)
def test_leading_axes_that_differ(stacked):
    with pytest.raises(ValueError, match="leading axis of samples") as error:
        from_samples(_linear, stacked)
    for name, leaf in stacked.items():
        assert f"\"['{name}']\": {np.shape(leaf)}" in str(error.value)


def test_index_out_of_range():
    enn = from_samples(_linear, _samples())
    params, state = enn.init(key(0), X, 0)
    with pytest.raises(ValueError, match=r"index must be in \[0, 5\), got 5"):
        enn.apply(params, state, X, 5)


def _batch_norm(is_training):
    def net(x):
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=is_training)
        return hk.Linear(2)(x)

    return hk.without_apply_rng(hk.transform_with_state(net))


def _as_enn(model):
    return networks.EnnArray(
        lambda params, state, inputs, index: model.apply(params, state, inputs),
        lambda key, inputs, index: model.init(key, inputs),
        networks.EnsembleIndexer(1),
    )


def test_every_sample_has_its_state():
    training, model = (_batch_norm(is_training) for is_training in (True, False))
    keys = jax.random.split(key(0), 3)
    samples, states = jax.vmap(training.init, (0, None))(keys, X)
    states = jax.tree.map(
        lambda x: x + jnp.arange(3).reshape(3, *[1] * (x.ndim - 1)).astype(x.dtype),
        states,
    )
    enn = from_network_samples(_as_enn(model), samples, states)
    params, state = enn.init(key(0), X, 0)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], (samples, states))
        out, new_state = enn.apply(params, state, X, i)
        np.testing.assert_allclose(out, model.apply(*one, X)[0], rtol=1e-5, atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, new_state, states)
    outs = make_batch_fwd(enn, 20)(params, state, X)
    assert len(np.unique(np.asarray(outs)[:, 0, 0])) == 3


@pytest.mark.slow
def test_a_network_with_state_needs_states():
    model = _batch_norm(is_training=True)
    samples, states = jax.vmap(model.init, (0, None))(jax.random.split(key(0), 3), X)
    enn = from_network_samples(_as_enn(model), samples)
    for call in (
        lambda: enn.init(key(0), X, 0),
        lambda: enn.apply(samples, {}, X, 0),
    ):
        with pytest.raises(
            ValueError, match="has state, and each sample needs its own"
        ):
            call()
    fixed = from_network_samples(_as_enn(_batch_norm(is_training=False)), samples)
    with pytest.raises(ValueError, match="average") as error:  # Of Haiku
        fixed.init(key(0), X, 0)
    assert any("give `states`" in note for note in error.value.__notes__)
    # In training a forward pass updates the state of its own sample alone.
    enn = from_network_samples(_as_enn(model), samples, states)
    _, new_state = enn.apply(*enn.init(key(0), X, 0), X, 1)
    counters = new_state["batch_norm/~/mean_ema"]["counter"]
    np.testing.assert_array_equal(counters, [0, 1, 0])


@pytest.mark.slow
def test_the_index_of_the_network_is_fixed():
    net = networks.epinet.make_mlp_epinet([4, 2], [4], 3)
    draw = jax.jit(jax.vmap(net.init, (0, None, None)))
    samples, _ = draw(jax.random.split(key(0), 2), X, jnp.ones(3))
    one = jax.tree.map(lambda x: x[1], samples)
    for index in (None, np.array([1.0, -2.0, 0.5], np.float32)):
        enn = from_network_samples(net, samples, index=index)
        own = net.indexer(key(0)) if index is None else index
        out, _ = jax.jit(enn.apply)(samples, {}, X, 1)
        expected, _ = jax.jit(net.apply)(one, {}, X, own)
        np.testing.assert_allclose(out.preds, expected.preds, rtol=1e-5)


def test_states_and_samples_that_differ_in_number():
    with pytest.raises(ValueError, match="leading axis of samples"):
        from_network_samples(
            _as_enn(_batch_norm(False)), {"w": np.ones([3, 2])}, {"b": np.ones([2])}
        )
