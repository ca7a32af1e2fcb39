"""The linear hyper-head: the optimum of its loss is the posterior of a linear model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import data_noise, losses, networks
from enn.networks.last_layer.gaussian_last_layer import append_one
from tests.posteriors.data import D1, TEST_X
from tests.support import cost

PHI = np.asarray(append_one(D1.x), np.float64)
PHI_TEST = np.asarray(append_one(TEST_X))
MODE = np.array([0.6913386, 0.1921260])
SIGMA, DELTA = 0.5, 1.0
LAM = SIGMA**2 * DELTA


def _angles(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _optimum(xi: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """A + A₀ = (ΦᵀΦ + λ I)⁻¹ (σ Φᵀ Ξ + λ A₀), `[F, M]`."""
    gram = PHI.T @ PHI + LAM * np.eye(2)
    return np.linalg.solve(gram, SIGMA * PHI.T @ xi + LAM * prior)


def _head(total: np.ndarray, prior: np.ndarray) -> tuple[Any, Any]:
    head = networks.LinearHyperHead(2, 1, prior.shape[1])
    factors = {"linear_hyper_head": total - prior, "prior": prior}
    return head, {
        name: {"factor": jnp.asarray(f[:, None], jnp.float32)}
        for name, f in factors.items()
    }


def _variance(head: Any, params: Any) -> Any:
    at_axes = jax.vmap(lambda z: head.apply(params, {}, TEST_X, z, PHI_TEST)[0].preds)
    columns = at_axes(jnp.eye(head.indexer.index_dim))
    return jnp.sum(jnp.square(columns), axis=0)[:, 0]


def test_with_orthonormal_noise_it_is_the_exact_posterior() -> None:
    rows = np.eye(7)
    head, params = _head(_optimum(rows[:5], rows[5:]), rows[5:])
    np.testing.assert_allclose(
        _variance(head, params), [0.0507874, 0.3086614], rtol=1e-5
    )


XI_2, PRIOR_2 = _angles(0, 1, 2, 3, 4), _angles(0.5, 2.5)
A_2 = np.array([[-1.1059959, -0.6002474], [0.7570269, -0.4388564]])


def _loss(w: Any, a: Any, signs: tuple[int, ...] = (1, -1)) -> jax.Array:
    """The mean over signed axes of the noisy squared error, plus decay of w and A."""
    axes = jnp.sqrt(2.0) * jnp.eye(2)
    indices = jnp.concatenate([sign * axes for sign in signs])

    def at_index(z: Any) -> jax.Array:
        noise = SIGMA * XI_2 @ z
        preds = PHI @ w + PHI @ (a + PRIOR_2) @ z
        return jnp.mean(jnp.square(preds - D1.y[:, 0] - noise))

    penalty = jnp.sum(jnp.square(w)) + jnp.sum(jnp.square(a))
    return jnp.mean(jax.vmap(at_index)(indices)) + LAM / 5 * penalty


@pytest.mark.slow
def test_the_optimum_of_two_columns() -> None:
    total = _optimum(XI_2, PRIOR_2)
    np.testing.assert_allclose(total - PRIOR_2, A_2, rtol=1e-6)
    head, params = _head(total, PRIOR_2)
    np.testing.assert_allclose(
        _variance(head, params), [0.0349079, 0.5731092], rtol=1e-5
    )
    index = np.sqrt(2) * _angles(0.7)[0]
    spread = head.apply(params, {}, TEST_X, index, PHI_TEST)[0].preds[:, 0]
    preds = PHI_TEST @ MODE + spread
    np.testing.assert_allclose(preds, [0.4569264, 1.2924243], rtol=1e-5)
    np.testing.assert_allclose(_loss(MODE, A_2), 0.3306856, rtol=1e-5)
    for grad in jax.grad(_loss, (0, 1))(MODE, A_2):
        np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-5)


def test_indices_of_one_sign_couple_mean_and_spread() -> None:
    grad = jax.grad(_loss)(MODE, A_2, (1,))
    np.testing.assert_allclose(grad, [0.1206496, -0.0224981], rtol=1e-4)


@pytest.mark.slow
def test_no_gradient_reaches_features_and_prior() -> None:
    enn = networks.make_linear_hyper_mlp_enn([4, 3], 5)
    x = np.ones([2, 3], np.float32)
    index = enn.indexer(jax.random.key(1))
    params, state = enn.init(jax.random.key(0), x, index)

    def spread(params: Any) -> jax.Array:
        out, other = (enn.apply(params, state, x, z)[0].preds for z in (index, -index))
        return jnp.sum(jnp.square(out - other))

    grads = jax.grad(spread)(params)
    trains = {name: any(leaf.any() for leaf in g.values()) for name, g in grads.items()}
    assert [name for name, train in trains.items() if train] == ["linear_hyper_head"]
    mask = networks.trainable_mask(params)
    assert [name for name in mask if not mask[name].get("factor", True)] == ["prior"]


def test_parameters_when_new() -> None:
    enn = networks.make_linear_hyper_mlp_enn([50, 40], 20, seed=3)
    x = np.ones([2, 3], np.float32)
    params, other = (
        enn.init(jax.random.key(seed), x, jnp.ones(20))[0] for seed in (0, 1)
    )
    prior = params["prior"]["factor"]
    assert prior.shape == (50, 40, 20)
    norms = jnp.linalg.norm(prior, axis=2)
    np.testing.assert_allclose(norms, np.ones([50, 40]), rtol=1e-5)
    np.testing.assert_array_equal(prior, other["prior"]["factor"])
    factors = [p["linear_hyper_head"]["factor"] for p in (params, other)]
    np.testing.assert_allclose(np.std(factors[0]), (2 / 2020) ** 0.5, rtol=0.02)
    assert (factors[0] != factors[1]).all()


def test_scales() -> None:
    scaled = networks.LinearHyperHead(2, 1, 2, prior_scale=3.0, posterior_scale=0.5)
    _, params = _head(_optimum(XI_2, PRIOR_2), PRIOR_2)
    out, _ = scaled.apply(params, {}, TEST_X, jnp.ones(2), PHI_TEST)
    np.testing.assert_allclose(out.train[:, 0], PHI_TEST @ A_2.sum(1) / 2, rtol=1e-5)
    np.testing.assert_allclose(out.prior[:, 0], 3 * PHI_TEST @ PRIOR_2.sum(1), 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: networks.LinearHyperHead(2, 1, 0),
            "index_dim must be an integer >= 1, got 0",
        ),
        (
            lambda: networks.LinearHyperHead(2, 1, 3, prior_scale=-1.0),
            "prior_scale must be >= 0, got -1",
        ),
        (
            lambda: networks.LinearHyperHead(2, 1, 3, posterior_scale=-1.0),
            "posterior_scale must be >= 0, got -1",
        ),
        (
            lambda: networks.make_linear_hyper_mlp_enn([3]),
            r"output_sizes must have a hidden layer, got \[3\]",
        ),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_target_noise_needs_ids() -> None:
    enn = networks.make_linear_hyper_mlp_enn([4, 1], 3)
    noise = data_noise.GaussianTargetNoise(enn, 0.01)
    single_loss = losses.add_data_noise(losses.L2Loss(), noise)
    index = enn.indexer(jax.random.key(0))
    params, state = enn.init(jax.random.key(0), D1.x, index)
    with pytest.raises(ValueError, match="data_index is missing"):
        single_loss(enn.apply, params, state, D1, index)


def test_operations_of_the_trunk_are_shared() -> None:
    enn = networks.make_linear_hyper_mlp_enn([50, 32, 5], index_dim=8)
    trunk = cost.mlp_flops(64, 7, 50, 32, 5)
    once, per_index = 2 * 64 * 32 * 5 * 8, 2 * 64 * 5 * 8
    flops = cost.flops_at_indices(enn, jnp.zeros([64, 7]), 200)
    # The part that trains and the prior are told apart: twice.
    assert flops <= 1.1 * (trunk + 2 * (once + 200 * per_index))
