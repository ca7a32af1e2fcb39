"""Approximate Gaussian processes by random features, as prior functions."""

from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks

GpGamma = float | tuple[float, float]
"""Kernel parameter: one number, or the bounds of a uniform distribution."""


def make_random_feat_gp(
    input_dim: int,
    output_dim: int,
    num_feat: int,
    key: chex.PRNGKey,
    gamma: GpGamma = 1.0,
    scale: float = 1.0,
) -> Callable[[chex.Array], chex.Array]:
    """Returns one sample from an approximate GP with squared exponential kernel.

    f_o(x) = scale · Σ_j α_j cos(γ_j x·W_jo + b_jo), with normal W, α_j ~ N(0, 1/J)
    and b ~ U[0, 2π] (Rahimi and Recht, 2007, Random features for large-scale kernel
    machines). Numbers follow the original `enn`, which leaves out the factor √2 of
    the feature map: the variance is scale² / 2.

    Args:
      input_dim: number of features of the flattened input.
      output_dim: number of outputs.
      num_feat: number J of random features.
      key: key of all draws.
      gamma: inverse length scale γ; a pair draws γ_j uniformly between its entries.
      scale: factor of the output.

    Returns:
      Function `[batch, ...] -> [batch, output_dim]`.

    Raises:
      ValueError: if a size is no integer >= 1, or `gamma` neither a number nor a
        pair; by the function for inputs of another size than `input_dim`.
    """
    input_dim = _checks.positive_int("input_dim", input_dim)
    output_dim = _checks.positive_int("output_dim", output_dim)
    num_feat = _checks.positive_int("num_feat", num_feat)
    w_key, b_key, alpha_key, gamma_key = jax.random.split(key, 4)
    weights = jax.random.normal(w_key, [num_feat, input_dim, output_dim])
    bias = 2 * jnp.pi * jax.random.uniform(b_key, [1, num_feat, output_dim])
    alpha = jax.random.normal(alpha_key, [num_feat]) / jnp.sqrt(num_feat)
    gammas = _draw_gamma(gamma, gamma_key, num_feat)

    def gp_instance(inputs: chex.Array) -> chex.Array:
        flat = jnp.reshape(inputs, (*jnp.shape(inputs)[:1], -1))
        _checks.shape("inputs", flat, (None, input_dim), f"[batch, {input_dim}]")
        projected = jnp.einsum("bi,jio->bjo", flat, weights)
        features = jnp.cos(gammas * projected + bias)
        return scale * jnp.einsum("j,bjo->bo", alpha, features)

    return gp_instance


def _draw_gamma(gamma: GpGamma, key: chex.PRNGKey, num_feat: int) -> chex.Array:
    gammas = jnp.asarray(gamma, float)
    if gammas.ndim == 0:
        return jnp.reshape(gammas, (1, 1, 1))
    if gammas.shape != (2,):
        raise ValueError(f"gamma must be a number or a pair of numbers, got {gamma!r}.")
    low, high = gammas
    return low + (high - low) * jax.random.uniform(key, [1, num_feat, 1])


def make_random_gp_ensemble_prior_fns(
    input_dim: int,
    output_dim: int,
    num_feat: int,
    gamma: GpGamma,
    num_ensemble: int,
    seed: int = 0,
) -> Sequence[Callable[[chex.Array], chex.Array]]:
    """Returns `num_ensemble` independent samples of `make_random_feat_gp`."""
    rng = hk.PRNGSequence(seed)
    return [
        make_random_feat_gp(input_dim, output_dim, num_feat, next(rng), gamma)
        for _ in range(_checks.positive_int("num_ensemble", num_ensemble))
    ]
