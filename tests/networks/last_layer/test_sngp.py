"""SNGP: spectral norms and random features by hand, and the variance of the two."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks, posteriors
from enn.datasets import ArrayBatch
from tests.posteriors.data import D1

W = np.array([[3, 0], [4, 5]], np.float32)
KEY = jax.random.key(0)


def _spectral(is_training: bool = True, **kw: Any) -> Any:
    return hk.without_apply_rng(
        hk.transform_with_state(
            lambda x: networks.SpectralLinear(2, is_training, **kw)(x)
        )
    )


def _variables(u: Any, w: Any = W) -> tuple[Any, Any]:
    params = {"spectral_linear": {"w": jnp.asarray(w), "b": jnp.zeros(2)}}
    return params, {"spectral_linear": {"u": jnp.asarray(u, jnp.float32)}}


def test_the_spectral_norm_by_hand() -> None:
    params, state = _variables([1, 0])
    out, _ = _spectral().apply(params, state, jnp.eye(2))
    expected = [[0.4450952, 0], [0.5934603, 0.7418254]]
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    for norm in (6.4031242, 6.7041185, 6.7081534):
        out, state = _spectral().apply(params, state, jnp.eye(2))
        np.testing.assert_allclose(W[1, 1] / out[1, 1] * 0.95, norm, rtol=1e-6)
    # All at once, and in the limit.
    params, state = _variables([1, 0])
    for steps, norm in ((3, 6.7081534), (30, 6.7082039)):
        out, _ = _spectral(num_iterations=steps).apply(params, state, jnp.eye(2))
        np.testing.assert_allclose(W[1, 1] / out[1, 1] * 0.95, norm, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(W, 2), 6.7082039, rtol=1e-6)


def test_evaluation_keeps_the_state() -> None:
    params, state = _variables([1, 0])
    out, new_state = _spectral(is_training=False).apply(params, state, jnp.eye(2))
    np.testing.assert_array_equal(new_state["spectral_linear"]["u"], [1, 0])
    np.testing.assert_allclose(out[1, 1], 0.7418254, rtol=1e-6)


def test_small_weights_are_left_alone() -> None:
    w = np.array([[0.3, 0], [0.1, 0.2]], np.float32)
    out, _ = _spectral(bound=1.0).apply(*_variables([1, 1], w), jnp.eye(2))
    np.testing.assert_array_equal(out, w)
    out, _ = _spectral().apply(*_variables([1, 1], 0 * w), jnp.eye(2))
    np.testing.assert_array_equal(out, 0 * w)


def test_no_gradient_through_the_norm() -> None:
    params, state = _variables([1, 0])

    def total(params: Any) -> jax.Array:
        return jnp.sum(_spectral().apply(params, state, jnp.eye(2))[0])

    grad = jax.grad(total)(params)["spectral_linear"]["w"]
    np.testing.assert_allclose(grad, np.full([2, 2], 1 / 6.7401308), rtol=1e-6)


def test_u_is_drawn_by_init() -> None:
    u = [
        _spectral().init(jax.random.key(seed), jnp.eye(2))[1]["spectral_linear"]["u"]
        for seed in (0, 1)
    ]
    assert (u[0] != u[1]).all()


FIXED = {
    "random_fourier_features": {
        "w": jnp.array([[1, -2, 0.5, 0.25]]),
        "b": jnp.array([0.0, 1, 2, 5]),
    }
}
PLAIN = {"num_features": 4, "layer_norm": False}


def _fourier(**kw: Any) -> Any:
    return hk.without_apply_rng(
        hk.transform_with_state(lambda x: networks.RandomFourierFeatures(**kw)(x))
    )


def test_features_by_hand() -> None:
    features, state = _fourier(**PLAIN).apply({}, FIXED, np.array([[0.5]], np.float32))
    expected = [[0.6851245, 0.6205446, -0.3721265, 0.2425391]]
    np.testing.assert_allclose(features, expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state, FIXED)


@pytest.mark.slow
def test_the_variance_on_fixed_features() -> None:
    def net(x: Any) -> Any:
        features = networks.RandomFourierFeatures(**PLAIN)(x)
        return hk.Linear(1)(features)

    enn = networks.wrap_net_fn_as_enn(net)
    x = D1.x.astype(np.float32)
    params, _ = enn.init(KEY, x, KEY)
    posterior = posteriors.fit_laplace(
        enn,
        params,
        FIXED,
        ArrayBatch(x=x, y=D1.y),
        "gaussian",
        structure="shared",
        last_layer="linear",
        bias=False,
    )
    factor = posterior.params["gaussian_last_layer"]["factor"]
    phi, _ = _fourier(**PLAIN).apply({}, FIXED, np.array([[0.5], [8]], np.float32))
    variance = networks.marginal_variance("shared", factor, phi)[:, 0]
    np.testing.assert_allclose(variance, [0.2849009, 0.8132838], rtol=1e-5)
    prior = np.sum(np.square(phi), axis=1)
    np.testing.assert_allclose(prior, [1.0517746, 1.1723978], rtol=1e-6)
    # edward2's covariance at ridge 1.
    train, _ = _fourier(**PLAIN).apply({}, FIXED, x)
    expected = np.linalg.inv(train.T @ train + np.eye(4))
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_features", [1000, 16_000])
def test_products_of_features_go_to_the_kernel(num_features: int) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    net = _fourier(num_features=num_features, length_scale=1.5, layer_norm=False)
    params, state = net.init(KEY, x)
    assert not params
    features, _ = net.apply(params, state, x)
    distances = np.square(x[:, None] - x[None]).sum(axis=2)
    kernel = np.exp(-distances / (2 * 1.5**2))
    # A product of cosines has a variance of at most 1.
    errors = np.abs(features @ features.T - kernel) * np.sqrt(num_features)
    assert errors.max() < 4
    assert errors.max() > 0.3


def test_features_are_fixed_by_the_seed_and_see_normalised_inputs() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    net = _fourier(num_features=8)
    first, second = (net.init(jax.random.key(i), x)[1] for i in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = _fourier(num_features=8, seed=1).init(KEY, x)[1]
    for name, leaf in first["random_fourier_features"].items():
        assert (leaf != other["random_fourier_features"][name]).all()
    shifted, _ = net.apply({}, first, 3 * x + 7)
    features, _ = net.apply({}, first, x)
    np.testing.assert_allclose(shifted, features, atol=1e-3)


def test_inputs_are_projected_on_fixed_directions() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    net = _fourier(num_features=8, projection_dim=3, layer_norm=False)
    _, state = net.init(KEY, x)
    arrays = state["random_fourier_features"]
    assert {name: leaf.shape for name, leaf in arrays.items()} == {
        "projection": (5, 3),
        "w": (3, 8),
        "b": (8,),
    }
    features, _ = net.apply({}, state, x)
    hidden = x @ arrays["projection"] / np.sqrt(5)
    expected = 0.5 * np.cos(hidden @ arrays["w"] / 2 + arrays["b"][None])
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.slow
def test_far_from_the_data_the_variance_is_the_prior_s() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)).astype(np.float32)

    def net(x: Any) -> Any:
        features = networks.RandomFourierFeatures(200, 1.0, layer_norm=False)(x)
        return hk.Linear(1)(features)

    enn = networks.wrap_net_fn_as_enn(net)
    params, state = enn.init(KEY, x, KEY)
    data = ArrayBatch(x=x, y=np.sin(x))
    kw: Any = {"structure": "shared", "last_layer": "linear", "bias": False}
    posterior = posteriors.fit_laplace(enn, params, state, data, "gaussian", **kw)
    factor = posterior.params["gaussian_last_layer"]["factor"]
    net_features = _fourier(num_features=200, length_scale=1.0, layer_norm=False)
    phi, _ = net_features.apply({}, state, np.array([[0], [30]], np.float32))
    near, far = networks.marginal_variance("shared", factor, phi)[:, 0]
    prior = jnp.sum(jnp.square(phi[1]))
    assert near < 0.05
    assert far > 0.7 * prior


@pytest.mark.slow
def test_the_mlp_trains_its_weights_alone() -> None:
    x = np.ones([3, 2], np.float32)
    enn = networks.make_sngp_mlp_enn([5, 4, 2], 16)
    params, state = enn.init(KEY, x, KEY)
    assert set(params) == {"spectral_linear", "spectral_linear_1", "linear"}
    out, new_state = enn.apply(params, state, x, KEY)
    np.testing.assert_allclose(
        out.extra["features"] @ params["linear"]["w"], out.preds, rtol=1e-5
    )
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, new_state)
    moved = {name: any(leaves.values()) for name, leaves in moved.items()}
    assert moved == {
        "random_fourier_features": False,
        "spectral_linear": True,
        "spectral_linear_1": True,
    }
    evaluate = networks.make_sngp_mlp_enn([5, 4, 2], 16, is_training=False)
    _, kept = evaluate.apply(params, new_state, x, KEY)
    jax.tree.map(np.testing.assert_array_equal, kept, new_state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _spectral(bound=0.0), "bound must be > 0, got 0"),
        (
            lambda: _spectral(num_iterations=0),
            "num_iterations must be an integer >= 1, got 0",
        ),
        (lambda: _fourier(length_scale=-1.0), "length_scale must be > 0, got -1"),
        (lambda: networks.make_sngp_mlp_enn([2, 1], bound=-1.0), "bound must be > 0"),
        (lambda: networks.make_sngp_mlp_enn([2, 1], 0), "num_features must be"),
        (lambda: networks.make_sngp_mlp_enn([2, 1], 8, 0), "projection_dim must be"),
        (lambda: networks.make_sngp_mlp_enn([1]), "must have a hidden layer, got"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().init(KEY, np.ones([2, 2], np.float32))
