import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import utils
from tests.support.fast import X, key


def _forward(x):
    return hk.nets.MLP([4, 2])(x)


TRANSFORMED = hk.without_apply_rng(hk.transform(_forward))


class Bilinear(networks.EpistemicModule):
    def __call__(self, inputs, index):
        calls = hk.get_state("calls", (), jnp.int32, init=jnp.zeros)
        hk.set_state("calls", calls + 1)
        w = hk.get_parameter("w", (3, 2), init=hk.initializers.RandomNormal())
        return inputs @ w @ index


def test_a_module_becomes_a_network_with_its_indexer():
    indexer = networks.GaussianIndexer(2)
    enn = utils.epistemic_network_from_module(Bilinear, indexer)
    assert enn.indexer is indexer
    index = jnp.array([1.0, -2.0])
    params, state = enn.init(key(0), X, index)
    assert jax.tree.map(jnp.shape, params) == {"bilinear": {"w": (3, 2)}}
    assert state == {"bilinear": {"calls": 0}}
    out, new_state = enn.apply(params, state, X, index)
    w = np.asarray(params["bilinear"]["w"])
    np.testing.assert_allclose(out, X @ (w[:, 0] - 2 * w[:, 1]), rtol=1e-5)
    assert new_state == {"bilinear": {"calls": 1}}


def test_init_of_a_module_uses_the_key_as_haiku_does():
    enn = utils.epistemic_network_from_module(Bilinear, networks.GaussianIndexer(2))
    params, _ = enn.init(key(5), X, jnp.ones(2))
    sub_key = next(hk.PRNGSequence(5))
    np.testing.assert_allclose(
        params["bilinear"]["w"], jax.random.normal(sub_key, (3, 2)), rtol=1e-6
    )


@pytest.mark.parametrize("index", [None, key(3), jnp.ones(7)])
@pytest.mark.parametrize(
    "enn",
    [
        utils.wrap_net_fn_as_enn(_forward),
        utils.wrap_transformed_as_enn(TRANSFORMED),
        networks.wrap_enn_no_state_as_enn(
            utils.wrap_transformed_as_enn_no_state(TRANSFORMED)
        ),
    ],
)
def test_functions_of_inputs_alone_ignore_the_index(enn, index):
    params, state = jax.jit(enn.init)(key(0), X, index)
    expected = jax.jit(TRANSFORMED.init)(key(0), X)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert state == {}
    out, state = jax.jit(enn.apply)(params, state, X, index)
    np.testing.assert_allclose(out, TRANSFORMED.apply(params, X), rtol=1e-5, atol=1e-6)
    assert state == {}


@pytest.mark.parametrize(
    "enn",
    [
        utils.wrap_net_fn_as_enn(_forward),
        utils.wrap_transformed_as_enn(TRANSFORMED),
        utils.wrap_transformed_as_enn_no_state(TRANSFORMED),
    ],
)
def test_the_index_of_functions_of_inputs_alone_is_the_key(enn):
    np.testing.assert_array_equal(enn.indexer(key(4)), key(4))


def test_a_function_keeps_its_state():
    def count(x):
        calls = hk.get_state("calls", (), init=jnp.ones)
        hk.set_state("calls", 2 * calls)
        return calls * x

    enn = utils.wrap_net_fn_as_enn(count)
    params, state = enn.init(key(0), X, None)
    for factor in (1, 2, 4):
        out, state = enn.apply(params, state, X, None)
        np.testing.assert_array_equal(out, factor * X)


def test_a_function_takes_any_tree_of_inputs():
    enn = utils.wrap_net_fn_as_enn(lambda inputs: inputs["x"] + inputs["y"])
    assert enn.apply({}, {}, {"x": 1, "y": 2}, None)[0] == 3


@pytest.mark.parametrize(
    "wrap",
    [utils.wrap_transformed_as_enn, utils.wrap_transformed_as_enn_no_state],
)
def test_a_transform_that_still_wants_a_key_is_explained(wrap):
    with pytest.raises(ValueError, match="without_apply_rng"):
        wrap(hk.transform(_forward))


def test_the_wrappers_are_re_exported():
    assert networks.wrap_net_fn_as_enn is utils.wrap_net_fn_as_enn
    assert networks.utils.wrap_net_fn_as_enn is utils.wrap_net_fn_as_enn
