"""A variational last layer at its optimum is the posterior, and its bound the evidence.

The losses of `enn.losses.last_layer_losses` are tested here, with the layer they read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses, networks
from enn.datasets import ArrayBatch
from tests.posteriors.data import D1, TEST_X
from tests.support import cost

COVARIANCE = np.array([[0.03307087, -0.00629921], [-0.00629921, 0.04881890]])
MODE = np.array([[0.6913386], [0.1921260]])
MEAN, LOWER = np.array([[0.5], [0.2]]), np.array([[0.4, 0], [-0.1, 0.3]])


def _layer(num_outputs: int = 1, **kw: Any) -> networks.EnnArray:
    kw = {"prior_variance": 1.0, "noise_std": 0.5, **kw}
    return networks.epistemic_network_from_module(
        lambda: networks.VariationalLastLayer(num_outputs, **kw),
        networks.GaussianIndexer(2 * num_outputs),
    )


def _params(mean: np.ndarray, lower: np.ndarray, **others: Any) -> Any:
    """Parameters of means `[F1, C]` and one factor for all outputs."""
    outputs = mean.shape[1]
    log_scale = np.log(np.diag(lower))[:, None].repeat(outputs, 1)
    arrays = {"w": mean, "log_scale": log_scale, **others}
    if "off_diagonal" not in others:
        arrays["off_diagonal"] = np.stack([np.tril(lower, -1)] * outputs)
    return {
        "variational_last_layer": {
            name: jnp.asarray(value, np.float32) for name, value in arrays.items()
        }
    }


def _loss(params: Any, data: Any = D1, enn: Any = None, num_samples: int = 5) -> Any:
    elbo = losses.ElboLoss(
        losses.get_last_layer_gaussian_loglike_fn(),
        losses.get_last_layer_kl_fn(num_samples),
    )
    loss_fn = losses.average_single_index_loss(elbo, 1)
    return loss_fn(enn or _layer(), params, {}, data, jax.random.PRNGKey(0))[0]


OPTIMUM = _params(MODE, np.linalg.cholesky(COVARIANCE))


def test_at_the_exact_posterior_the_bound_is_the_evidence() -> None:
    np.testing.assert_allclose(_loss(OPTIMUM), 5.4486826 / 5, rtol=1e-5)
    out, _ = _layer().apply(OPTIMUM, {}, D1.x, jnp.zeros(2))
    np.testing.assert_allclose(out.extra["last_layer_kl"], 2.5251881, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5])
def test_there_the_gradient_is_zero(rows: int) -> None:
    batches = [
        ArrayBatch(x=D1.x[i : i + rows], y=D1.y[i : i + rows])
        for i in range(0, 5, rows)
    ]
    grad = jax.grad(lambda p: sum(_loss(p, b) for b in batches) / len(batches))
    for leaf in jax.tree.leaves(grad(OPTIMUM)):
        np.testing.assert_allclose(leaf, np.zeros_like(leaf), atol=3e-6)


def test_values_elsewhere() -> None:
    params = _params(MEAN, LOWER)
    out, _ = _layer().apply(params, {}, D1.x, jnp.zeros(2))
    np.testing.assert_allclose(out.extra["last_layer_kl"], 1.3952635, rtol=1e-6)
    np.testing.assert_allclose(_loss(params), 1.4548441, rtol=1e-6)
    # The best diagonal: 1 / S = diag(P), P = φᵀφ / σ² + I.
    scale = 1 / np.sqrt(np.array([31.0, 21.0]))
    arrays = {"w": MODE, "log_scale": np.log(scale)[:, None]}
    diagonal = _params(MODE, np.diag(scale), off_diagonal=np.zeros([1, 2, 2]))
    np.testing.assert_allclose(_loss(diagonal), 1.0922250, rtol=1e-5)
    params = {"variational_last_layer": jax.tree.map(jnp.float32, arrays)}
    loss = _loss(params, enn=_layer(structure="diagonal"))
    np.testing.assert_allclose(loss, 1.0922250, rtol=1e-5)


@pytest.mark.slow
def test_outputs_are_summed_each_with_its_own_noise() -> None:
    data = ArrayBatch(x=D1.x, y=np.hstack([D1.y, 2 * D1.y]))
    params = _params(np.hstack([MEAN, -MEAN]), LOWER)
    enn = _layer(2, noise_std=(0.5, 1.0))
    out, _ = enn.apply(params, {}, D1.x, jnp.zeros(4))
    log_likelihood = losses.get_last_layer_gaussian_loglike_fn()(out, data)
    np.testing.assert_allclose(log_likelihood, -5.6142299, rtol=1e-6)
    np.testing.assert_allclose(_loss(params, data, enn), 6.1723353, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["per_output", "diagonal"])
def test_indices_have_mean_and_variance_of_the_bound(structure: Any) -> None:
    enn = _layer(2, structure=structure)
    params, state = enn.init(jax.random.key(0), TEST_X, jnp.zeros(4))
    params = jax.tree.map(lambda p: p + 0.3, params)
    mean, _ = enn.apply(params, state, TEST_X, jnp.zeros(4))
    np.testing.assert_array_equal(mean.preds, mean.extra["last_layer_mean"])
    at_axes = jax.vmap(lambda z: enn.apply(params, state, TEST_X, z)[0].preds)
    columns = at_axes(jnp.eye(4)) - mean.preds[None]
    np.testing.assert_allclose(
        jnp.sum(jnp.square(columns), axis=0),
        mean.extra["last_layer_variance"],
        rtol=1e-5,
    )


def _categorical(mean: Any, variance: Any, labels: Any) -> Any:
    extra = {"last_layer_mean": mean, "last_layer_variance": variance}
    out = networks.OutputWithPrior(mean, extra=extra)
    fn = losses.get_last_layer_categorical_loglike_fn(mean.shape[1])
    return fn(out, ArrayBatch(x=None, y=labels))


def test_the_categorical_bound() -> None:
    mean, variance = np.array([[1, 0.2, -0.5]]), np.array([[0.5, 0.1, 0.8]])
    bound = _categorical(mean, variance, np.array([[0]]))
    np.testing.assert_allclose(bound, -0.7368114, rtol=1e-6)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes), axis=-1).reshape(-1, 3)
    product = np.stack(np.meshgrid(weights, weights, weights), axis=-1)
    product = product.reshape(-1, 3).prod(axis=1) / weights.sum() ** 3
    logits = mean + np.sqrt(variance) * grid
    log_probs = logits[:, 0] - np.log(np.exp(logits).sum(axis=1))
    assert bound <= log_probs @ product
    assert bound > log_probs @ product - 0.2


@pytest.mark.slow
def test_learned_noise_has_a_prior() -> None:
    params = _params(MEAN, LOWER, log_noise_std=np.log([0.5]))
    loss = _loss(params, enn=_layer(noise_std=None))
    # dof + C + 1 = 3, and σ⁻² = 4.
    prior = 0.5 * 3 * np.log(4) - 0.5 * 0.01 * 4
    np.testing.assert_allclose(loss, 1.4548441 - prior / 5, rtol=1e-6)


def test_parameters_when_new() -> None:
    enn = networks.make_vbll_mlp_enn([200, 10])
    x = np.ones([2, 3], np.float32)
    params, _ = enn.init(jax.random.key(0), x, enn.indexer(jax.random.key(1)))
    layer = params["variational_last_layer"]
    shapes = {name: leaf.shape for name, leaf in layer.items()}
    assert shapes == {
        "w": (201, 10),
        "log_scale": (201, 10),
        "off_diagonal": (10, 201, 201),
        "log_noise_std": (10,),
    }
    np.testing.assert_allclose(layer["w"].std(), 0.1, rtol=0.05)
    np.testing.assert_allclose(layer["log_scale"].mean(), -np.log(200), rtol=1e-4)
    np.testing.assert_allclose(layer["log_scale"].std(), 1e-3, rtol=0.1)
    np.testing.assert_allclose(layer["off_diagonal"].std(), 1e-3 / 200, rtol=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _layer(prior_variance=0.0), "prior_variance must be > 0, got 0"),
        (lambda: _layer(noise_std=-1.0), "noise_std must be > 0, got -1"),
        (lambda: _layer(structure="joint"), "one of 'per_output', 'diagonal'"),
        (lambda: losses.get_last_layer_kl_fn(0), "num_samples must be > 0, got 0"),
        (
            lambda: losses.get_last_layer_kl_fn(1, noise_scale=-1.0),
            "noise_scale must be > 0",
        ),
        (lambda: networks.make_vbll_mlp_enn([2]), "must have a hidden layer"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), D1.x, jnp.zeros(2))


@pytest.mark.parametrize(
    "settings", [{"prior_variance": 0.0}, {"structure": "joint"}, {"noise_std": -1}]
)
def test_settings_of_an_mlp_are_checked_when_it_is_made(settings: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        networks.make_vbll_mlp_enn([3, 1], **settings)


def test_noise_of_other_layers_is_not_that_of_this_one() -> None:
    params = OPTIMUM | {"other": {"log_noise_std": jnp.zeros(1)}}
    out, _ = _layer().apply(OPTIMUM, {}, D1.x, jnp.zeros(2))
    kl = losses.get_last_layer_kl_fn(5)
    np.testing.assert_allclose(kl(out, params, 0), kl(out, OPTIMUM, 0))


def test_a_label_out_of_range_counts_nothing_under_jit() -> None:
    parts = {"last_layer_mean": np.eye(3), "last_layer_variance": np.ones([3, 3])}
    out = networks.OutputWithPrior(np.eye(3), extra=parts)
    log_likelihood = jax.jit(losses.get_last_layer_categorical_loglike_fn(3))
    got, want = (
        log_likelihood(out, ArrayBatch(x=np.eye(3), y=np.array(labels)[:, None]))
        for labels in ([0, 1, -1], [0, 1, 0])
    )
    # Row 2 with the label 0: -log(2 + e) - ½, the same ½ being in every exponent.
    np.testing.assert_allclose(3 * (got - want), np.log(2 + np.e) + 0.5, rtol=1e-5)


def test_operations_of_the_trunk_are_shared() -> None:
    enn = networks.make_vbll_mlp_enn([50, 32, 5])
    once = cost.mlp_flops(64, 7, 50, 32, 5) + 2 * 64 * 33**2 * 5  # q, of `extra`
    per_index = 2 * 64 * 33 * 5 + 2 * 33**2 * 5  # φᵀ(L z)
    flops = cost.flops_at_indices(enn, jnp.zeros([64, 7]), 200)
    assert flops <= 1.1 * (once + 200 * per_index)


def test_losses_name_what_a_network_lacks() -> None:
    out = networks.OutputWithPrior(np.ones([5, 1]))
    for fn in (
        losses.get_last_layer_gaussian_loglike_fn(),
        losses.get_last_layer_categorical_loglike_fn(1),
    ):
        with pytest.raises(ValueError, match=r"must have extra\['last_layer_mean'\]"):
            fn(out, D1)
    with pytest.raises(ValueError, match=r"must have extra\['last_layer_kl'\]"):
        losses.get_last_layer_kl_fn(5)(out, {}, 0)
