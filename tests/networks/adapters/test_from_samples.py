import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.adapters.from_samples import from_samples
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
