"""Features are what the last layer sees, whatever network it is part of."""

from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

from enn import networks

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
KEY = jax.random.key(0)


class Doubled(hk.Linear):
    """Calls its parent's method, which is no second call of the module."""

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        return 2 * super().__call__(inputs, **kwargs)


def _apply(enn: networks.EnnArray, index: Any = 0) -> tuple[Any, Any]:
    params, state = jax.jit(enn.init)(KEY, X, index)
    out, _ = enn.apply(params, state, X, index)
    return params, out


def test_features_times_weights_are_the_output() -> None:
    net = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([5, 2])(x))
    exposed = networks.expose_features(net, "mlp/~/linear_1")
    params, out = _apply(exposed)
    last = params["mlp/~/linear_1"]
    np.testing.assert_allclose(
        out.extra["features"] @ last["w"] + last["b"][None], out.preds, rtol=1e-6
    )
    np.testing.assert_array_equal(out.preds, _apply(net)[1])


def test_features_of_a_member_of_an_ensemble() -> None:
    model = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.nets.MLP([5, 2])(x))
    )
    net = networks.EnsembleWithState(model, 3)
    params, out = _apply(networks.expose_features(net, "mlp/~/linear_1"), 2)
    last = params["mlp/~/linear_1"]
    np.testing.assert_allclose(
        out.extra["features"] @ last["w"][2] + last["b"][2:], out.preds, rtol=1e-6
    )


def test_other_outputs_are_kept_and_nothing_leaks_from_jit() -> None:
    net = networks.wrap_net_fn_as_enn(
        lambda x: networks.OutputWithPrior(Doubled(2)(x), extra={"twice": 2 * x})
    )
    exposed = networks.expose_features(net, "doubled")
    params, state = exposed.init(KEY, X, KEY)
    with jax.checking_leaks():
        out, _ = jax.jit(exposed.apply)(params, state, X, KEY)
    np.testing.assert_array_equal(out.extra["twice"], 2 * X)
    np.testing.assert_array_equal(out.extra["features"], X)


def test_errors() -> None:
    def twice(x: Any) -> Any:
        layer = hk.Linear(3)
        return layer(layer(x))

    net = networks.wrap_net_fn_as_enn(twice)
    with pytest.raises(ValueError, match=r"one of \['linear'\]; 'linear' is called 2"):
        _apply(networks.expose_features(net, "linear"))
    with pytest.raises(ValueError, match=r"\['linear'\]; 'mlp' is called 0 times"):
        _apply(networks.expose_features(net, "mlp"))
    net = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(2)(x[0])[None] + 0 * x[:, :2])
    with pytest.raises(ValueError, match=r"'linear' must be a batch of 4 rows"):
        _apply(networks.expose_features(net, "linear"))
