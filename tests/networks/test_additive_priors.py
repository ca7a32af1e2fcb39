import logging

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import priors
from enn.networks.base import EnnArray, EnnNoState, OutputWithPrior
from tests.support.fast import X, assert_output_starts, compiled, init, key, output


class Doubled(OutputWithPrior):
    __slots__ = ()

    @property
    def preds(self):
        return 2 * self.train + self.prior


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def _network(out):
    return EnnArray(
        lambda params, state, inputs, index: (out, {"new": {"state": 1}}),
        lambda *args: ({}, {}),
        networks.GaussianIndexer(2),
    )


def _prior_fn(inputs, index):
    return inputs * index[0] + index[1]


Z = np.array([2.0, 0.5], np.float32)


def test_a_prior_is_added_to_a_plain_output():
    enn = _network(X)
    with_prior = networks.EnnWithAdditivePrior(enn, _prior_fn, 3.0)
    out, state = with_prior.apply({}, {}, X, Z)
    assert type(out) is OutputWithPrior
    _close(out.train, X)
    _close(out.prior, 3 * (2 * X + 0.5))
    assert state == {"new": {"state": 1}}
    assert (with_prior.init, with_prior.indexer) == (enn.init, enn.indexer)


def test_a_prior_is_added_to_the_prior_of_the_output():
    enn = _network(Doubled(X, 10 * X, {"hidden": X}))
    out = networks.EnnWithAdditivePrior(enn, _prior_fn).apply({}, {}, X, Z)[0]
    assert type(out) is Doubled
    _close(out.prior, 12 * X + 0.5)
    _close(out.preds, 14 * X + 0.5)
    _close(out.extra["hidden"], X)


def test_networks_without_state_get_the_same_prior():
    enn = EnnNoState(lambda p, x, z: p * x, object(), networks.GaussianIndexer(2))
    with_prior = networks.EnnNoStateWithAdditivePrior(enn, _prior_fn, 3.0)
    out = with_prior.apply(5.0, X, Z)
    _close(out.train, 5 * X)
    _close(out.prior, 3 * (2 * X + 0.5))
    assert (with_prior.init, with_prior.indexer) == (enn.init, enn.indexer)
    assert isinstance(with_prior, EnnNoState)


def _module_enn(prior_scale):
    def forward(x):
        net, prior_net = hk.nets.MLP([4, 2]), hk.nets.MLP([4, 2])
        return networks.NetworkWithAdditivePrior(net, prior_net, prior_scale)(x)

    return networks.wrap_net_fn_as_enn(forward)


def test_documented_values_of_a_module_with_prior():
    assert_output_starts(output(_module_enn(2.0), key(1)), [-0.080067, 0.205541])


def test_the_prior_module_is_in_the_tree_and_takes_the_first_keys():
    params, _ = init(_module_enn(2.0), index=key(1))
    layers = {
        "linear_0": {"w": (3, 4), "b": (4,)},
        "linear_1": {"w": (4, 2), "b": (2,)},
    }
    assert jax.tree.map(jnp.shape, params) == {
        f"{net}/~/{name}": layer
        for net in ("mlp", "mlp_1")
        for name, layer in layers.items()
    }
    alone = hk.transform(lambda x: hk.nets.MLP([4, 2])(x)).init(key(0), X)
    _close(params["mlp_1/~/linear_0"]["w"], alone["mlp/~/linear_0"]["w"])


@pytest.mark.strict
def test_no_gradient_reaches_the_prior_module():
    enn = _module_enn(2.0)
    params, _ = init(enn, index=key(1))

    def total(params):
        return jnp.sum(enn.apply(params, {}, X, None)[0] ** 2)

    grads = compiled(jax.grad(total))(params)
    for name, grad in grads.items():
        is_prior = name.startswith("mlp_1")
        assert np.any(grad["w"] != 0) != is_prior


def test_arguments_go_to_both_modules():
    def forward(x, factor):
        net = lambda x, factor: x * factor  # noqa: E731
        return networks.NetworkWithAdditivePrior(net, net, 10.0)(x, factor=factor)

    transformed = hk.without_apply_rng(hk.transform(forward))
    _close(transformed.apply({}, X, 3), 33 * X)


def test_the_warning_about_trainable_priors_is_logged_once(caplog):
    priors._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            init(_module_enn(1.0), index=key(1))
    assert [record.getMessage() for record in caplog.records] == [priors.WARN]
