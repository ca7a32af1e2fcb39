"""Logarithms of normal densities, for variational inference."""

from typing import Any

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp


def log_normal_prob(
    x: chex.Array, mu: chex.Array | float = 0, sigma: chex.Array | float = 1
) -> jax.Array:
    """Returns log N(x; mu, sigma²), elementwise."""
    log_sigma = jnp.log(sigma)
    normalised = (jnp.asarray(x) - mu) / sigma
    return -0.5 * jnp.log(2 * jnp.pi) - log_sigma - 0.5 * jnp.square(normalised)


def log_softplus(x: chex.Array) -> jax.Array:
    """Returns log(log(1 + exp(x))), elementwise and accurate for any finite x.

    Where exp(x) is small, softplus underflows, and its logarithm is taken from the
    series x - exp(x) / 2 + O(exp(2x)).
    """
    # Each branch gets arguments of its own range: else the gradient of the one not
    # taken is infinite, and times zero NaN.
    small, large = jnp.minimum(x, -20), jnp.maximum(x, -20)
    series = small - jnp.exp(small) / 2
    return jnp.where(jnp.asarray(x) < -20, series, jnp.log(jax.nn.softplus(large)))


def sum_log_scale_mixture_normal(
    x: chex.Array,
    sigma_1: float,
    sigma_2: float,
    mu_1: float = 0.0,
    mu_2: float = 0.0,
    pi: float = 1.0,
) -> jax.Array:
    """Returns Σ log(π N(x; μ₁, σ₁²) + (1 - π) N(x; μ₂, σ₂²)) over all of `x`.

    The scale mixture prior of Blundell et al., 2015, https://arxiv.org/abs/1505.05424,
    equation 7, if both means are zero.
    """
    log_probs = jnp.stack(
        [log_normal_prob(x, mu_1, sigma_1), log_normal_prob(x, mu_2, sigma_2)], axis=-1
    )
    weights = jnp.array([pi, 1 - pi], log_probs.dtype)
    weights = jnp.broadcast_to(weights, log_probs.shape)
    return jnp.sum(jax.nn.logsumexp(log_probs, axis=-1, b=weights))


def normal_log_prob(
    latent: Any, sigma: chex.Array | float = 1, mu: chex.Array | float = 0
) -> jax.Array:
    """Returns log N(u; mu, sigma² I) of all entries u of the pytree `latent`."""
    flat, _ = jax.flatten_util.ravel_pytree(latent)
    return jnp.sum(log_normal_prob(flat, mu, sigma))
