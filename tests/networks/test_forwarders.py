import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.base import OutputWithPrior
from enn.networks.forwarders import make_batch_fwd
from tests.support.fast import X, key


class Expectation(OutputWithPrior):
    """Predictions that stacked outputs do not give, as in categorical networks."""

    __slots__ = ()

    @property
    def preds(self):
        return jnp.sum(self.train * self.extra["atoms"][None, None], axis=-1)


def _network(out_fn, indexer=None):
    def apply(params, state, inputs, index):
        return out_fn(params, inputs, index), {"new": {"state": index}}

    return networks.EnnArray(apply, None, indexer or networks.GaussianIndexer(2))


def _indices(enn, num_indices, seed):
    return jax.vmap(enn.indexer)(jax.random.split(key(seed), num_indices))


def test_documented_value():
    enn = networks.epinet.make_mlp_epinet([4, 2], [5], 3)
    params, state = jax.jit(enn.init)(key(0), X, enn.indexer(key(3)))
    preds = make_batch_fwd(enn, 4)(params, state, X)
    assert preds.shape == (4, 2, 2)
    np.testing.assert_allclose(preds[0, 0], [0.210047, 0.001812], atol=1e-5)


@pytest.mark.parametrize(("num_enn_samples", "seed"), [(5, 66), (3, 1)])
def test_predictions_are_those_at_each_index(num_enn_samples, seed):
    enn = _network(lambda p, x, z: p * x * z[0] + z[1])
    preds = make_batch_fwd(enn, num_enn_samples, seed)(2.0, {}, X)
    expected = [2 * X * z[0] + z[1] for z in _indices(enn, num_enn_samples, seed)]
    np.testing.assert_allclose(preds, np.stack(expected), rtol=1e-5)


def test_a_thousand_indices_of_seed_66_are_the_default():
    enn = _network(lambda p, x, z: x[:, :1] + z[0])
    preds = make_batch_fwd(enn)(None, {}, X)
    expected = X[None, :, :1] + _indices(enn, 1000, 66)[:, :1, None]
    np.testing.assert_allclose(preds, expected, rtol=1e-6)


def test_every_call_uses_the_same_indices():
    fwd = make_batch_fwd(_network(lambda p, x, z: x + z[0]), 4)
    np.testing.assert_array_equal(fwd(None, {}, X), fwd(None, {}, X))


def _spread(
    fwd: networks.EnnBatchFwd[chex.Array], x: chex.Array, key: chex.PRNGKey | None
) -> chex.Array:
    """As research code calls it, with the key by place and by name: type-checked."""
    return fwd({}, {}, x, key) - fwd({}, {}, x, key=None)


def test_the_key_may_be_none_by_place_or_by_name():
    fwd = make_batch_fwd(_network(lambda p, x, z: x + z[0]), 4)
    np.testing.assert_array_equal(_spread(fwd, X, None), np.zeros((4, *X.shape)))
    assert np.all(_spread(fwd, X, key(5)) != 0)


@pytest.mark.parametrize("key_fn", [jax.random.PRNGKey, jax.random.key])
def test_a_call_may_bring_a_key_of_its_own(key_fn):
    enn = _network(lambda p, x, z: x + z[0])
    preds = make_batch_fwd(enn, 4)(None, {}, X, key_fn(5))
    np.testing.assert_array_equal(preds, make_batch_fwd(enn, 4, 5)(None, {}, X))


@pytest.mark.strict
@pytest.mark.parametrize("num_enn_samples", [1, 2, 4])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_predictions_are_parsed_at_each_index(num_enn_samples, num_outputs):
    logits = np.random.default_rng(0).normal(size=(2, num_outputs, 5))

    def out_fn(params, inputs, index):
        return Expectation(logits, extra={"atoms": index[0] * jnp.arange(5.0)})

    enn = _network(out_fn)
    preds = make_batch_fwd(enn, num_enn_samples)(None, {}, X)
    z = np.asarray(_indices(enn, num_enn_samples, 66))[:, 0]
    expected = z[:, None, None] * (logits @ np.arange(5.0))
    assert preds.shape == (num_enn_samples, 2, num_outputs)
    np.testing.assert_allclose(preds, expected, rtol=1e-5)


@pytest.mark.parametrize("num_enn_samples", [1, 2, 5])
def test_an_omitted_prior_adds_nothing(num_enn_samples):
    enn = _network(lambda p, x, z: OutputWithPrior(x * z[0]))
    preds = make_batch_fwd(enn, num_enn_samples)(None, {}, X)
    expected = [X * z[0] for z in _indices(enn, num_enn_samples, 66)]
    np.testing.assert_allclose(preds, np.stack(expected), rtol=1e-5)


def test_ensembles_and_typed_inputs_are_evaluated_member_by_member():
    enn = _network(lambda p, x, z: x["a"] + p[z], networks.EnsembleIndexer(3))
    members = jnp.array([0.0, 10.0, 20.0])
    preds = make_batch_fwd(enn, 8)(members, {}, {"a": X})
    expected = [X + members[z] for z in _indices(enn, 8, 66)]
    np.testing.assert_allclose(preds, np.stack(expected), rtol=1e-5)


@pytest.mark.parametrize("num_enn_samples", [0, -1, 2.0, None])
def test_numbers_of_indices_below_one_are_refused(num_enn_samples):
    enn = _network(lambda p, x, z: x)
    with pytest.raises(ValueError, match="num_enn_samples must be an integer >= 1"):
        make_batch_fwd(enn, num_enn_samples)
