"""Makes the output at one index, the mean index, tell mean and variance over indices.

In all functions, `batched_out` holds outputs at several indices, stacked on a new axis
0 of every array, and `distill_out` the output at the mean index. Predictions are
`[num_index_samples, batch, num_outputs]` and `[batch, num_outputs]`; results are
scalars.
"""

import math

import chex
import jax
import jax.numpy as jnp

from enn import _checks
from enn.losses.extra_outputs import extra_output
from enn.networks.base import Output
from enn.networks.outputs import parse_net_output


def variance_kl(var: chex.Array, pred_log_var: chex.Array) -> jax.Array:
    """Returns KL(N(0, var) ‖ N(0, exp(pred_log_var))), elementwise.

    Equation: ½ (l - log v + v exp(-l) - 1). A variance of zero, as of a single
    sample, counts as the least positive normal number, so that the result is finite.
    """
    var, pred_log_var = jnp.asarray(var), jnp.asarray(pred_log_var)
    dtype = jnp.result_type(var, pred_log_var, 0.0)
    var = jnp.maximum(var, jnp.finfo(dtype).tiny)
    return 0.5 * (pred_log_var - jnp.log(var) + var * jnp.exp(-pred_log_var) - 1)


def distill_mean_regression(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns the mean squared gap between mean prediction and distilled prediction.

    Raises:
      ValueError: if their shapes differ.
    """
    mean = jnp.mean(_predictions(batched_out), axis=0)
    distilled = parse_net_output(distill_out)
    _same_shape("distill_out", distilled, mean)
    return jnp.mean(jnp.square(distilled - mean))


def distill_mean_classification(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns KL(m ‖ q), for class probabilities m averaged over indices, q distilled.

    Equation: mean over the batch of Σ_c m_c log(m_c / q_c), with 0 log 0 = 0.

    Raises:
      ValueError: if the shapes differ.
    """
    log_probs = jax.nn.log_softmax(_predictions(batched_out))
    log_mean = jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs))
    log_distilled = jax.nn.log_softmax(parse_net_output(distill_out))
    _same_shape("distill_out", log_distilled, log_mean)
    mean = jnp.exp(log_mean)
    log_ratio = jnp.where(mean > 0, log_mean - log_distilled, 0)
    return jnp.mean(jnp.sum(mean * log_ratio, axis=1))


def distill_var_regression(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns the mean `variance_kl` of predictions from `extra["log_var"]`.

    Raises:
      ValueError: if `distill_out` has no `log_var` or their shapes differ.
    """
    return _mean_variance_kl(_predictions(batched_out), distill_out)


def distill_var_classification(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns the mean `variance_kl` of class probabilities from `extra["log_var"]`.

    Raises:
      ValueError: if `distill_out` has no `log_var` or their shapes differ.
    """
    return _mean_variance_kl(jax.nn.softmax(_predictions(batched_out)), distill_out)


def _predictions(batched_out: Output) -> jax.Array:
    return jnp.asarray(jax.vmap(parse_net_output)(batched_out))


def _mean_variance_kl(values: jax.Array, distill_out: Output) -> jax.Array:
    log_var = extra_output(distill_out, "log_var")
    variance = jnp.var(values, axis=0)
    _same_shape("extra['log_var']", log_var, variance)
    return jnp.mean(variance_kl(variance, log_var))


def _same_shape(name: str, array: chex.Array, batched: jax.Array) -> None:
    shape = batched.shape
    _checks.shape(name, array, shape, f"of the output at one index, {list(shape)}")
