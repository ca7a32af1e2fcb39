"""An epinet on a trained network of any library."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from enn import networks
from enn.networks.epinet import MLPEpinetWithPrior, add_epinet
from tests.networks.descriptors import DESCRIPTORS
from tests.support import fast, golden

X = golden.normal(6, 3)
KEY = jax.random.key(4)
NUM_OUTPUTS = 2
OPTIONS: dict[str, Any] = {"num_outputs": NUM_OUTPUTS, "index_dim": 3}
OPTIONS |= {"epinet_hiddens": [5]}
Trained = tuple[tuple[Any, ...], str, Any, Any]
"""Arguments of `add_epinet`, the name of a layer, what it sees, and the output."""


def _haiku() -> Trained:
    net = hk.transform_with_state(lambda x: hk.nets.MLP([4, NUM_OUTPUTS])(x))
    params, state = jax.jit(net.init)(KEY, X)
    first = params["mlp/~/linear_0"]
    hidden = jax.nn.relu(X @ first["w"] + first["b"][None])
    out, _ = net.apply(params, state, None, X)
    return (net, params, state), "mlp/~/linear_1", hidden, out


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.BatchNorm(use_running_average=True)(linen.Dense(4)(x))
        return linen.Dense(NUM_OUTPUTS, name="head")(jnp.tanh(x))


def _flax() -> Trained:
    net = _Linen()
    variables = jax.jit(net.init)(KEY, X)
    head = variables["params"]["head"]
    out = net.apply(variables, X)
    first = variables["params"]["Dense_0"]
    hidden = jnp.tanh((X @ first["kernel"]) / np.sqrt(1 + 1e-5))
    np.testing.assert_allclose(out, hidden @ head["kernel"], atol=1e-5)
    return (net, variables), "head", hidden, out


class _Nnx(nnx.Module):
    def __init__(self, rngs: Any):
        self.layers = nnx.List(
            [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, NUM_OUTPUTS, rngs=rngs)]
        )

    def __call__(self, x: Any) -> Any:
        return self.layers[1](jnp.tanh(self.layers[0](x)))


def _nnx() -> Trained:
    net = _Nnx(nnx.Rngs(KEY))
    return (net,), "layers/1", jnp.tanh(net.layers[0](X)), net(X)


def _equinox() -> Trained:
    net = eqx.nn.MLP(3, NUM_OUTPUTS, 4, 1, key=KEY)
    hidden = jax.nn.relu(jax.vmap(net.layers[0])(X))
    return (net,), "layers/1", hidden, jax.vmap(net)(X)


def _enn() -> Trained:
    (net, params, state), layer, hidden, out = _haiku()
    model = hk.TransformedWithState(
        lambda key, x: net.init(key, x),
        lambda params, state, x: net.apply(params, state, None, x),
    )
    enn = networks.EnsembleWithState(model, 2)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    return (enn, stacked, state), layer, hidden, out


LIBRARIES = pytest.mark.parametrize(
    "make", [_haiku, _flax, _nnx, _equinox, _enn], ids=lambda make: make.__name__
)


@LIBRARIES
@pytest.mark.parametrize("freeze_base", [True, False])
def test_it_is_the_network_and_an_epinet_on_its_features(
    make: Callable[[], Trained], freeze_base: bool
) -> None:
    args, layer, hidden, expected = make()
    enn = add_epinet(*args, features=layer, freeze_base=freeze_base, **OPTIONS)
    index = np.array([0.3, -1.0, 2.0], np.float32)
    params, state = enn.init(KEY, X, index)
    out, _ = fast.compiled(enn.apply)(params, state, X, index)
    epinet = MLPEpinetWithPrior(3, NUM_OUTPUTS, [5], drop_inputs=True)
    own = {name: p for name, p in params.items() if "_epinet" in name}
    added, _ = epinet.apply(own, {}, X, index, hidden)
    assert freeze_base == (len(own) == len(params))
    np.testing.assert_allclose(out.train, expected + added.train, atol=1e-5)
    np.testing.assert_allclose(out.prior, added.prior, atol=1e-5)


@LIBRARIES
def test_a_base_that_trains_gets_gradients(make: Callable[[], Trained]) -> None:
    args, layer, _, _ = make()
    enn = add_epinet(*args, features=layer, freeze_base=False, **OPTIONS)
    index = np.ones(3, np.float32)
    params, state = enn.init(KEY, X, index)

    def loss(params: Any) -> Any:
        out, _ = enn.apply(params, state, X, index)
        return jnp.sum(networks.parse_net_output(out) ** 2)

    grads = fast.compiled(jax.grad(loss))(params)
    for name, leaf in jax.tree_util.tree_leaves_with_path(grads):
        is_prior = "prior_epinet" in jax.tree_util.keystr(name)
        assert np.any(np.asarray(leaf)) != is_prior, name


@LIBRARIES
def test_a_layer_that_does_not_exist_is_named_with_those_that_do(
    make: Callable[[], Trained],
) -> None:
    args, layer, _, _ = make()
    enn = add_epinet(*args, features="nowhere", **OPTIONS)
    with pytest.raises(
        ValueError, match=f"(?s)one of .*'{layer}'.*'nowhere' is called 0"
    ):
        enn.init(KEY, X, np.ones(3))


@LIBRARIES
@pytest.mark.parametrize("num_outputs", [1, NUM_OUTPUTS + 1])
def test_another_number_of_outputs_than_the_network_has_is_refused(
    make: Callable[[], Trained], num_outputs: int
) -> None:
    args, layer, _, _ = make()
    enn = add_epinet(*args, features=layer, num_outputs=num_outputs, index_dim=3)
    with pytest.raises(
        ValueError,
        match=rf"num_outputs={num_outputs}\], got shape \[6, {NUM_OUTPUTS}\]",
    ):
        enn.init(KEY, X, np.ones(3))


def test_an_output_without_an_axis_of_outputs_is_refused() -> None:
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 1])(x)[:, 0]))
    params = jax.jit(net.init)(KEY, X)
    enn = add_epinet(net, params, features="mlp/~/linear_1", num_outputs=1)
    with pytest.raises(ValueError, match=r"num_outputs=1\], got shape \[6\]"):
        enn.init(KEY, X, np.ones(10))


def test_features_may_be_a_function_of_the_output() -> None:
    lenet = networks.EnsembleLeNet5ENN(NUM_OUTPUTS, 1, (2,), expose_hidden=True)
    images = golden.normal(2, 4, 4, 1)
    params, state = fast.init(lenet, images)
    enn = add_epinet(
        lenet, params, state, features=lambda out: out.extra["final_out"], **OPTIONS
    )
    epinet_params, _ = fast.init(enn, images, np.ones(3, np.float32))
    assert epinet_params["train_epinet/~/mlp/~/linear_0"]["w"].shape == (84 + 3, 5)


@pytest.mark.slow
def test_sentences_get_an_epinet_too() -> None:
    net = next(net for net in DESCRIPTORS if net.name == "bert_eval")
    bert, tokens = net.make(), net.inputs
    params, state = fast.init(bert, tokens, KEY)
    name = next(name for name in params if name.endswith("pooler_dense"))
    enn = add_epinet(bert, params, state, features=name, num_outputs=6, index_dim=3)
    index = np.zeros(3, np.float32)
    out, _ = jax.jit(enn.apply)(*fast.init(enn, tokens, index), tokens, index)
    expected, _ = jax.jit(bert.apply)(params, state, tokens, KEY)
    np.testing.assert_allclose(out.train, expected.train, atol=1e-5)


@pytest.mark.parametrize("network", [_Linen, eqx.nn.MLP, lambda x: x])
def test_a_class_or_a_bare_function_is_refused(network: Any) -> None:
    with pytest.raises(TypeError, match="network must be an EpistemicNetwork"):
        add_epinet(network, {}, features="head", **OPTIONS)


def test_missing_parameters_are_asked_for() -> None:
    with pytest.raises(TypeError, match="params must be given"):
        add_epinet(_Linen(), features="head", **OPTIONS)
