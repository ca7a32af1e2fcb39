"""Parts of the loss of a variational autoencoder.

Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, appendices B and C. All
inputs are `[batch, dim]`, of equal shape; all results are scalars, in nats, summed
over the dimensions and averaged over the batch.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.datasets.base import ArrayBatch
from enn.metrics.base import at_least_float32
from enn.networks.base import OutputWithPrior, extra_output

LogLikelihoodFn = Callable[[OutputWithPrior, ArrayBatch], chex.Array]
"""`(net_out, batch) -> scalar`."""


def binary_log_likelihood(x: chex.Array, output: chex.Array) -> jax.Array:
    """Returns log p(x) for Bernoulli variables, Σᵢ xᵢ log σ(oᵢ) + (1 - xᵢ) log σ(-oᵢ).

    Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, appendix C.1.

    >>> import numpy as np
    >>> from enn import losses
    >>> x, logits = np.array([[1.0, 0.0]]), np.zeros([1, 2])
    >>> round(float(losses.binary_log_likelihood(x, logits)), 3)  # 2 log ½
    -1.386

    Args:
      x: data in [0, 1], `[batch, dim]`.
      output: logits o of the decoder, `[batch, dim]`.
    """
    x, output = _matrices(x=x, output=output)
    log_probs = x * jax.nn.log_sigmoid(output) + (1 - x) * jax.nn.log_sigmoid(-output)
    return jnp.mean(jnp.sum(log_probs, axis=1))


def gaussian_log_likelihood(
    x: chex.Array, mean: chex.Array, log_var: chex.Array
) -> jax.Array:
    """Returns log p(x) for independent normal variables.

    Equation: -½ Σᵢ log 2π + log σᵢ² + (xᵢ - μᵢ)² / σᵢ², averaged over the batch.

    Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, appendix C.2.

    >>> import numpy as np
    >>> from enn import losses
    >>> zeros = np.zeros([1, 2])
    >>> round(float(losses.gaussian_log_likelihood(zeros, zeros, zeros)), 3)  # -log 2π
    -1.838

    Args:
      x: data, `[batch, dim]`.
      mean: their means, `[batch, dim]`.
      log_var: logarithms of their variances, `[batch, dim]`.
    """
    x, mean, log_var = _matrices(x=x, mean=mean, log_var=log_var)
    # Scaled first: the square of a small distance underflows.
    squares = jnp.square((x - mean) * jnp.exp(-0.5 * log_var))
    log_densities = -0.5 * (math.log(2 * math.pi) + log_var + squares)
    return jnp.mean(jnp.sum(log_densities, axis=1))


def latent_kl_divergence(mean: chex.Array, log_var: chex.Array) -> jax.Array:
    """Returns KL(N(mean, exp(log_var)) ‖ N(0, I)).

    Equation: -½ Σᵢ 1 + log σᵢ² - μᵢ² - σᵢ².

    Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, appendix B.

    >>> import numpy as np
    >>> from enn import losses
    >>> mean, log_var = np.array([[2.0, 0.0]]), np.zeros([1, 2])
    >>> print(losses.latent_kl_divergence(mean, log_var))  # ½ 2²
    2.0

    Args:
      mean: means μ of the latents, `[batch, dim]`.
      log_var: logarithms of their variances σ², `[batch, dim]`.
    """
    mean, log_var = _matrices(mean=mean, log_var=log_var)
    terms = jnp.square(mean) + jnp.expm1(log_var) - log_var
    return jnp.mean(0.5 * jnp.sum(terms, axis=1))


def latent_kl_fn(net_out: OutputWithPrior) -> jax.Array:
    """Returns `latent_kl_divergence` of `latent_mean` and `latent_log_var`.

    >>> import numpy as np
    >>> from enn import losses, networks
    >>> latents = {"latent_mean": np.array([[2.0]]), "latent_log_var": np.zeros([1, 1])}
    >>> out = networks.OutputWithPrior(train=np.zeros([1, 1]), extra=latents)
    >>> print(losses.latent_kl_fn(out))  # ½ 2²
    2.0

    Raises:
      ValueError: if either is missing from `net_out.extra`.
    """
    return latent_kl_divergence(
        extra_output(net_out, "latent_mean"), extra_output(net_out, "latent_log_var")
    )


def get_log_likelihood_fn(bernoulli_decoder: bool) -> LogLikelihoodFn:
    """Returns the log-likelihood of `batch.x` under the output of a decoder.

    The decoder's `extra` holds `out_mean` (logits, if Bernoulli) and `out_log_var`;
    a missing one raises ValueError.

    >>> import numpy as np
    >>> from enn import datasets, losses, networks
    >>> loglike = losses.get_log_likelihood_fn(bernoulli_decoder=False)
    >>> zeros = np.zeros([1, 1])
    >>> moments = {"out_mean": zeros, "out_log_var": zeros}
    >>> out = networks.OutputWithPrior(zeros, extra=moments)
    >>> round(float(loglike(out, datasets.ArrayBatch(zeros, zeros))), 3)  # -½ log 2π
    -0.919

    Args:
      bernoulli_decoder: whether the data are Bernoulli rather than normal variables.
    """

    def log_likelihood_fn(net_out: OutputWithPrior, batch: ArrayBatch) -> jax.Array:
        mean = extra_output(net_out, "out_mean")
        log_var = extra_output(net_out, "out_log_var")
        if bernoulli_decoder:
            return binary_log_likelihood(batch.x, mean)
        return gaussian_log_likelihood(batch.x, mean, log_var)

    return log_likelihood_fn


def _matrices(**arrays: chex.Array) -> list[jax.Array]:
    shape = np.shape(next(iter(arrays.values())))
    for name, array in arrays.items():
        _checks.shape(name, array, (None, None), "[batch, dim]")
        _checks.shape(name, array, shape, f"{list(shape)} of the first argument")
    return [at_least_float32(array) for array in arrays.values()]
