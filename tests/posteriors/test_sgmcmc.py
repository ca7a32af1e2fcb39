"""Langevin samplers against closed forms of a Gaussian posterior, and blackjax."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses, networks, posteriors
from tests.losses import cases

Y = np.sin(np.arange(1, 1001))  # The mean θ of N(θ, 1), with the prior N(0, 10).
A = 1.0001
MU = np.mean(Y) / A


def gradient(theta: Any) -> Any:
    return A * (theta - MU)


def path(
    sampler: optax.GradientTransformation, num_steps: int, theta: Any = 0.5
) -> Any:
    theta = jnp.asarray(theta, float)
    state, thetas = sampler.init(theta), []
    for _ in range(num_steps):
        updates, state = sampler.update(gradient(theta), state, theta)
        theta = optax.apply_updates(theta, updates)
        thetas.append(theta)
    return np.array(thetas)


@pytest.mark.slow
def test_loss_with_the_prior_is_that_of_the_posterior() -> None:
    net = networks.EnnArray(
        lambda params, state, x, index: (x * params["w"][None], state),
        None,
        networks.EnsembleIndexer(1),
    )
    half = losses.average_single_index_loss(losses.L2Loss())

    def likelihood(*args: Any) -> Any:
        loss, aux = half(*args)
        return loss / 2, aux

    scale = posteriors.gaussian_prior_scale(10.0, len(Y))
    loss = losses.add_l2_weight_decay(likelihood, scale)
    batch = cases.batch_of(Y[:, None]).replace(x=np.ones([len(Y), 1], np.float32))

    def at(theta: Any) -> Any:
        params = {"w": jnp.reshape(theta, [1])}
        return loss(net, params, {}, batch, jax.random.key(0))[0]

    np.testing.assert_allclose(jax.grad(at)(0.5), gradient(0.5), rtol=1e-5)
    np.testing.assert_allclose(MU, 8.138882e-4, rtol=1e-6)


@pytest.mark.strict
@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (posteriors.sghmc(0.1, 1000, temperature=0), [0.4500764, 0.3602144, 0.2433950]),
        (
            posteriors.sgld(
                0.1,
                1000,
                temperature=0,
                preconditioner=posteriors.rmsprop_preconditioner(),
            ),
            [-0.4999980, 0.2100279, -0.0756556],
        ),
    ],
)
def test_without_temperature_the_path_is_that_of_gradient_descent(
    sampler: Any, expected: Any
) -> None:
    np.testing.assert_allclose(path(sampler, 3), expected, rtol=2e-6)


def test_seed_fixes_the_noise() -> None:
    for make, expected in (
        (posteriors.sgld, [0.4155349, 0.3562752]),
        (posteriors.sghmc, [0.4391534, 0.3349295]),
    ):
        np.testing.assert_allclose(path(make(0.1, 1000), 2), expected, rtol=1e-6)
        assert path(make(0.1, 1000, seed=1), 1) != path(make(0.1, 1000), 1)


def test_momentum_decay_of_zero_is_sgld() -> None:
    np.testing.assert_array_equal(
        path(posteriors.sghmc(0.1, 1000, momentum_decay=0), 3),
        path(posteriors.sgld(0.1, 1000), 3),
    )


def test_leaves_have_noise_of_their_own_in_their_own_type() -> None:
    params = {"a": jnp.zeros([3], jnp.bfloat16), "b": {"w": jnp.zeros([2, 3])}}
    preconditioner = posteriors.rmsprop_preconditioner()
    for options in ({}, {"preconditioner": preconditioner}):
        sampler = posteriors.sghmc(lambda step: 0.5 / (1 + step), 2, **options)
        state = sampler.init(params)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, new_state = sampler.update(grads, state, params)
        for tree, old in ((updates, params), (new_state, state)):
            types, old_types = (
                jax.tree.map(lambda leaf: leaf.dtype, t) for t in (tree, old)
            )
            assert types == old_types
    # At zero gradient what is left is √(2(1-b)T/N)·√η times normals, one key a leaf.
    zeros = jax.tree.map(jnp.zeros_like, params)
    sampler = posteriors.sghmc(lambda step: 0.5 / (1 + step), 2)
    updates, state = sampler.update(zeros, sampler.init(params))
    _, key_a, key_b = jax.random.split(jax.random.PRNGKey(0), 3)
    noise = jax.random.normal(key_b, [2, 3])
    np.testing.assert_allclose(
        updates["b"]["w"], np.sqrt(0.5 * 2 * 0.1 / 2) * noise, rtol=1e-5
    )
    noise = jax.random.normal(key_a, [3], jnp.bfloat16).astype(float)
    np.testing.assert_allclose(
        updates["a"].astype(float), np.sqrt(0.05) * noise, rtol=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "batch_size", "expected"),
    [
        (posteriors.sgld, None, 1.052532e-3),
        (posteriors.sghmc, None, 1.026927e-3),
        (posteriors.sgld, 10, 3.684871e-3),
        (posteriors.sghmc, 10, 0.02670996),
    ],
)
def test_stationary_variance(
    make: Any, batch_size: int | None, expected: float
) -> None:
    """Every entry of a vector is a chain of its own."""
    num_chains = 4000 if batch_size else 60_000
    sampler = make(0.1, len(Y))

    @jax.jit
    def run(key: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            theta, state = carry
            grad = gradient(theta)
            if batch_size:
                rows = jax.random.randint(key, [batch_size, num_chains], 0, len(Y))
                grad = theta * A - jnp.asarray(Y, jnp.float32)[rows].mean(0)
            updates, state = sampler.update(grad, state)
            return (theta + updates, state), None

        start = jnp.full([num_chains], MU, jnp.float32)
        carry = (start, sampler.init(start))
        return jax.lax.scan(step, carry, jax.random.split(key, 150))[0][0]

    theta = np.array(run(jax.random.key(1)), float)
    standard_error = expected * np.sqrt(2 / num_chains)
    # Without N in the noise it would be a thousand times as large.
    assert abs(theta.var() - expected) < 4 * standard_error
    assert abs(theta.mean() - MU) < 4 * np.sqrt(expected / num_chains)
    # The tolerance tells the chain's variance from that of the posterior.
    assert abs(1 / (len(Y) * A) - expected) > 4 * standard_error


@pytest.mark.slow
@pytest.mark.parametrize("make", [posteriors.sgld, posteriors.sghmc])
def test_an_ensemble_is_parallel_chains(make: Any) -> None:
    model = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.Linear(1, with_bias=False)(x))
    )
    ensemble, single = (networks.EnsembleWithState(model, k) for k in (3, 1))
    batch = cases.batch_of(np.array([[1.0], [-2.0]])).replace(
        x=np.array([[1.0, 0.5], [0.3, -1.0]], np.float32)
    )
    starts = np.arange(6, dtype=np.float32).reshape(3, 2, 1)

    def run(enn: Any, num_members: int, start: Any) -> Any:
        indices = jnp.arange(num_members)
        scale = posteriors.gaussian_prior_scale(0.5, 2 * num_members)
        loss = losses.average_over_indices(losses.L2Loss(), indices)
        loss = losses.add_l2_weight_decay(loss, scale)
        sampler = make(0.1 * num_members, 2 * num_members, temperature=0)
        params = {"linear": {"w": jnp.asarray(start)}}
        state = sampler.init(params)
        for _ in range(3):
            grads = jax.grad(lambda p: loss(enn, p, {}, batch, None)[0])(params)
            updates, state = sampler.update(grads, state)
            params = optax.apply_updates(params, updates)
        return params["linear"]["w"]

    together = run(ensemble, 3, starts)
    for k in range(3):
        alone = run(single, 1, starts[k : k + 1])
        np.testing.assert_allclose(together[k], alone[0], rtol=1e-5, atol=1e-6)
    # Their noise is that of one chain: √(2(1-b)ηT/N) times normals.
    zeros = jnp.zeros([2, 1])
    noise = [
        make(0.1 * k, 2 * k).update(zeros, make(0.1 * k, 2 * k).init(zeros))[0]
        for k in (3, 1)
    ]
    np.testing.assert_allclose(noise[0], noise[1], rtol=1e-6)


def test_what_is_not_sampled_stays() -> None:
    params = {"prior": {"w": jnp.ones([2])}, "mlp": {"w": jnp.ones([2])}}
    transforms = {True: posteriors.sghmc(0.1, 10), False: optax.set_to_zero()}
    sampler = posteriors.track_samples(
        optax.partition(transforms, networks.trainable_mask), num_samples=2, every=1
    )
    grads = jax.tree.map(jnp.ones_like, params)  # Also of weight decay.
    updates, state = sampler.update(grads, sampler.init(params), params)
    assert not np.any(updates["prior"]["w"])
    assert np.all(updates["mlp"]["w"] != 0)
    np.testing.assert_array_equal(posteriors.get_samples(state)["prior"]["w"], [[1, 1]])


def test_one_step_is_that_of_blackjax_at_temperature_zero() -> None:
    diffusions = pytest.importorskip("blackjax.sgmcmc.diffusions")
    step = diffusions.overdamped_langevin()
    start, grad = jnp.array([0.5, -2.0]), jnp.array([0.3, 0.7])
    # It climbs the gradient of the log posterior, N times that of -L.
    expected = step(jax.random.key(0), start, -1000 * grad, 0.1 / 1000, 0.0)
    sampler = posteriors.sgld(0.1, 1000, temperature=0)
    updates, _ = sampler.update(grad, sampler.init(start))
    np.testing.assert_allclose(start + updates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posteriors.sgld(0.0, 10), r"learning_rate must be > 0, got 0\.0"),
        (lambda: posteriors.sghmc(0.1, 0), "num_data must be > 0, got 0"),
        (lambda: posteriors.sgld(0.1, 10, -1.0), r"temperature must be >= 0, got -1"),
        (lambda: posteriors.sghmc(0.1, 10, 1.0), r"momentum_decay must be in \[0, 1\)"),
        (
            lambda: posteriors.sghmc(0.1, 10, -0.1),
            r"momentum_decay must be in \[0, 1\)",
        ),
        (lambda: posteriors.rmsprop_preconditioner(1.0), r"decay must be in \[0, 1\)"),
        (lambda: posteriors.rmsprop_preconditioner(eps=0), "eps must be > 0, got 0"),
        (lambda: posteriors.gaussian_prior_scale(0, 10), "variance must be > 0, got 0"),
        (lambda: posteriors.gaussian_prior_scale(1, -1), "num_data must be > 0"),
    ],
)
def test_wrong_settings(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_prior_scale() -> None:
    np.testing.assert_allclose(posteriors.gaussian_prior_scale(10.0, 1000), 5e-5)
