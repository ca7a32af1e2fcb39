import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import utils
from enn.networks.base import EnnNoState
from tests.support.fast import X, key


def _apply(params, inputs, index):
    return params["w"]["w"] * inputs + index


def _init(rng_key, inputs, index):
    return {"w": {"w": jax.random.normal(rng_key, inputs.shape)}}


ENN = EnnNoState(_apply, _init, networks.EnsembleIndexer(3))
PARAMS = {"w": {"w": 2.0}}


def _batch_norm(is_training):
    def enn(is_training):
        return networks.wrap_net_fn_as_enn(
            lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), is_training)
        )

    # Haiku makes the state of batch normalisation in training only.
    return networks.EnnArray(
        enn(is_training).apply, enn(True).init, networks.PrngIndexer()
    )


def test_apply_without_state_ignores_the_state_and_returns_an_empty_one():
    out, state = utils.wrap_apply_no_state_as_apply(_apply)(PARAMS, {"a": 1}, X, 1)
    np.testing.assert_array_equal(out, 2 * X + 1)
    assert state == {}


def test_init_without_state_returns_an_empty_one():
    params, state = utils.wrap_init_no_state_as_init(_init)(key(0), X, 0)
    np.testing.assert_array_equal(params["w"]["w"], jax.random.normal(key(0), X.shape))
    assert state == {}


def test_a_network_without_state_is_wrapped_whole():
    enn = utils.wrap_enn_no_state_as_enn(ENN)
    assert enn.indexer is ENN.indexer
    assert jax.tree.structure(enn.init(key(0), X, 0)) == jax.tree.structure(
        ({"w": {"w": 0}}, {})
    )
    np.testing.assert_array_equal(enn.apply(PARAMS, {}, X, 2)[0], 2 * X + 2)


def test_wrapping_back_and_forth_gives_the_same_network():
    enn = utils.wrap_enn_as_enn_no_state(utils.wrap_enn_no_state_as_enn(ENN))
    assert enn.indexer is ENN.indexer
    np.testing.assert_array_equal(enn.apply(PARAMS, X, 2), 2 * X + 2)
    np.testing.assert_array_equal(
        enn.init(key(1), X, 0)["w"]["w"], _init(key(1), X, 0)["w"]["w"]
    )


@pytest.mark.parametrize("is_training", [True, False])
def test_a_state_that_nobody_gave_raises(is_training):
    enn = utils.wrap_enn_as_enn_no_state(_batch_norm(is_training))
    with pytest.raises(ValueError, match=r"has state.*batch_norm.*constant_state"):
        enn.init(key(0), X, key(1))


def test_a_state_that_would_start_anew_at_each_call_raises():
    # Once, apply took the parameters of enn.init and normalised by each batch alone.
    with_state = _batch_norm(is_training=True)
    params, _ = with_state.init(key(0), X, key(1))
    enn = utils.wrap_enn_as_enn_no_state(with_state)
    with pytest.raises(ValueError, match=r"has state.*batch_norm.*constant_state"):
        enn.apply(params, X, key(1))


def test_the_constant_state_is_the_state_of_every_forward_pass():
    with_state = _batch_norm(is_training=False)
    params, state = with_state.init(key(0), X, key(1))
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2), state)
    enn = utils.wrap_enn_as_enn_no_state(with_state, state)
    np.testing.assert_array_equal(enn.init(key(0), X, key(1))["linear"]["b"], [0, 0])
    expected = (X @ params["linear"]["w"] - 2) / np.sqrt(2 + 1e-5)
    for _ in range(2):
        out = enn.apply(params, X, key(1))
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_empty_state_is_a_state():
    enn = utils.wrap_enn_as_enn_no_state(_batch_norm(True), {})
    params = enn.init(key(0), X, key(1))
    assert enn.apply(params, X, key(1)).shape == (2, 2)


def test_networks_without_state_run_under_jit_and_vmap():
    enn = utils.wrap_enn_no_state_as_enn(ENN)
    fwd = jax.jit(jax.vmap(enn.apply, in_axes=(None, None, None, 0)))
    out, state = fwd(PARAMS, {}, X, jnp.arange(3))
    np.testing.assert_allclose(out, np.stack([2 * X + i for i in range(3)]))
    assert state == {}
