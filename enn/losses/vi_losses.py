"""Parts of the evidence lower bound for networks that generate their parameters.

The likelihood functions are `(out, batch) -> scalar`, a mean over the batch. The
divergences are `(out, params, index) -> scalar`: from the distribution of the generated
parameters to its prior, divided by the number of training data, `num_samples`, so that
both are on the same scale in `ElboLoss`.
"""

from typing import Any

import chex
import haiku as hk
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.datasets.base import ArrayBatch
from enn.losses.single_index import (
    LogLikelihoodFn,
    ModelPriorKlFn,
    label_cross_entropy,
    regression_errors,
)
from enn.metrics.base import at_least_float32
from enn.networks.base import Output, extra_output
from enn.networks.utils import parse_net_output


def get_awgn_loglike_fn(sigma_w: float) -> LogLikelihoodFn:
    """Returns -½ mean((f(x) - y)²) / sigma_w², for additive white Gaussian noise.

    The mean log-likelihood of a row, without terms that do not depend on the network.
    Output and `batch.y` are `[batch, 1]`; `batch.y` may be `[batch]`.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> log_likelihood = losses.get_awgn_loglike_fn(sigma_w=0.5)
    >>> batch = datasets.ArrayBatch(x=np.zeros([1, 1]), y=np.array([[1.0]]))
    >>> float(log_likelihood(np.zeros([1, 1]), batch))  # -½ · 1² / 0.5²
    -2.0

    Args:
      sigma_w: standard deviation of the noise.
    """
    _checks.positive(sigma_w=sigma_w)

    def log_likelihood_fn(out: Output, batch: ArrayBatch) -> jax.Array:
        preds = parse_net_output(out)
        _checks.shape("network output", preds, (None, 1), "[batch, 1]")
        errors = regression_errors(preds, batch.y) / sigma_w
        return -0.5 * jnp.mean(jnp.square(errors))

    return log_likelihood_fn


def get_categorical_loglike_fn(num_classes: int) -> LogLikelihoodFn:
    """Returns the mean log-probability of the label, mean_b log softmax(f(x_b))[y_b].

    Labels `batch.y` are `[batch, 1]` and checked as by `XentLoss`.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> log_likelihood = losses.get_categorical_loglike_fn(num_classes=2)
    >>> batch = datasets.ArrayBatch(x=np.zeros([1, 1]), y=np.array([[1]]))
    >>> round(float(log_likelihood(np.log([[0.25, 0.75]]), batch)), 3)  # log 0.75
    -0.288
    """
    _checks.positive_int("num_classes", num_classes)

    def log_likelihood_fn(out: Output, batch: ArrayBatch) -> jax.Array:
        logits = parse_net_output(out)
        return -jnp.mean(label_cross_entropy(logits, batch.y, num_classes))

    return log_likelihood_fn


def get_sample_based_model_prior_kl_fn(
    num_samples: float, sigma_1: float, sigma_2: float = 1.0, scale: float = 1.0
) -> ModelPriorKlFn:
    """Returns a one-sample estimate of the divergence from a scale mixture prior.

    (log q(u) - log p(u)) / num_samples, for u ~ q = N(μ, softplus(ρ)²) the generated
    parameters, `out.extra["hyper_index"]`, and p = scale · N(0, sigma_1²) +
    (1 - scale) · N(0, sigma_2²), for each entry (Blundell et al., 2015,
    https://arxiv.org/abs/1505.05424, section 3.2).

    In `params`, ρ are the leaves named `w` and μ all others, both `[n]`, and so is u.

    >>> import numpy as np
    >>> from enn import losses, networks
    >>> kl = losses.get_sample_based_model_prior_kl_fn(num_samples=10, sigma_1=2.0)
    >>> u, w = {"hyper_index": np.zeros(1)}, np.log(np.expm1([1.0]))  # softplus(w) = 1
    >>> out = networks.OutputWithPrior(train=np.zeros([1, 1]), extra=u)
    >>> params = {"hyper": {"w": w, "b": np.array([0.0])}}
    >>> round(float(kl(out, params, None)), 3)  # log(2) / 10 where u = 0
    0.069

    Args:
      num_samples: number of training data.
      sigma_1: standard deviation of the first component of the prior.
      sigma_2: standard deviation of the second component.
      scale: weight of the first component.
    """
    _checks.positive(num_samples=num_samples, sigma_1=sigma_1, sigma_2=sigma_2)

    def model_prior_kl_fn(
        out: Output, params: hk.Params, index: base.Index
    ) -> jax.Array:
        rho, mu = (jnp.concatenate(part, axis=None) for part in _split(params))
        latent = jnp.ravel(at_least_float32(extra_output(out, "hyper_index")))
        _same_size(w=rho, b=mu, hyper_index=latent)
        log_sigma = log_softplus(rho)
        # Floored, so that 1 / σ stays finite.
        log_tiny = jnp.log(jnp.finfo(rho.dtype).tiny)
        normalised = (latent - mu) * jnp.exp(-jnp.maximum(log_sigma, log_tiny))
        log_posterior = jnp.sum(log_normal_prob(normalised) - log_sigma)
        log_prior = sum_log_scale_mixture_normal(latent, sigma_1, sigma_2, pi=scale)
        return (log_posterior - log_prior) / num_samples

    return model_prior_kl_fn


def get_analytical_diagonal_linear_model_prior_kl_fn(
    num_samples: float, sigma_0: float
) -> ModelPriorKlFn:
    """Returns KL(N(b, diag(s²)) ‖ N(0, sigma_0² I)) / num_samples.

    With s = softplus(w):
    ½ (Σ s²/σ₀² + Σ b²/σ₀² - n - 2 Σ log s + 2 n log σ₀) / num_samples.

    In `params`, w are the leaves of that name and b all others, both `[n]`.

    For the Gaussian of Blundell et al., 2015, https://arxiv.org/abs/1505.05424.

    >>> import numpy as np
    >>> from enn import losses
    >>> kl = losses.get_analytical_diagonal_linear_model_prior_kl_fn(10, sigma_0=1.0)
    >>> w = np.log(np.expm1([1.0]))  # softplus(w) = 1
    >>> params = {"hyper": {"w": w, "b": np.array([2.0])}}
    >>> round(float(kl(None, params, None)), 3)  # ½ 2² / 10
    0.2

    Args:
      num_samples: number of training data.
      sigma_0: standard deviation of the prior.
    """
    _checks.positive(num_samples=num_samples, sigma_0=sigma_0)

    def model_prior_kl_fn(
        out: Output, params: hk.Params, index: base.Index
    ) -> jax.Array:
        weights, biases = _split(params)
        for leaf in weights + biases:
            _checks.shape("every parameter", leaf, (None,), "[n]")
        w, b = jnp.concatenate(weights), jnp.concatenate(biases)
        _same_size(w=w, b=b)
        # s²/σ₀² - 1 - 2 log(s/σ₀), which is small near the prior, for each entry.
        log_ratio = log_softplus(w) - jnp.log(sigma_0)
        terms = jnp.expm1(2 * log_ratio) - 2 * log_ratio + jnp.square(b / sigma_0)
        return 0.5 * jnp.sum(terms) / num_samples

    return model_prior_kl_fn


def get_analytical_linear_model_prior_kl_fn(
    num_samples: float, sigma_0: float
) -> ModelPriorKlFn:
    """Returns the divergence of a linear hypermodel from its prior, in index space.

    For θ(z) = Wᵀ z + b and G = W Wᵀ + 10⁻⁶ I:
    ½ (tr G - D - log det G + (W b)ᵀ G⁻¹ (W b) / σ₀²) / num_samples.

    In `params`, W `[index_dim D, n]` are the leaves named `w`, joined on axis 1, and
    b `[n]` all others.

    Linear hypermodels: Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464.

    >>> import numpy as np
    >>> from enn import losses
    >>> kl = losses.get_analytical_linear_model_prior_kl_fn(num_samples=10, sigma_0=1.0)
    >>> params = {"hyper": {"w": np.eye(2), "b": np.array([2.0, 0.0])}}
    >>> round(float(kl(None, params, None)), 3)  # ½ 2² / 10
    0.2

    Args:
      num_samples: number of training data.
      sigma_0: standard deviation of the prior.
    """
    _checks.positive(num_samples=num_samples, sigma_0=sigma_0)

    def model_prior_kl_fn(
        out: Output, params: hk.Params, index: base.Index
    ) -> jax.Array:
        weights, biases = _split(params)
        for leaf in weights:
            rows = np.shape(weights[0])[0]
            _checks.shape("w", leaf, (rows, None), f"[index_dim, n] = [{rows}, n]")
        w, b = jnp.concatenate(weights, axis=1), jnp.concatenate(biases, axis=None)
        index_dim, num_params = w.shape
        _checks.shape("b", b, (num_params,), f"[{num_params}] of the columns of w")
        gram = w @ w.T + 1e-6 * jnp.eye(index_dim, dtype=w.dtype)
        log_det = jnp.linalg.slogdet(gram)[1]
        projected = w @ b / sigma_0
        distance = projected @ jnp.linalg.solve(gram, projected)
        return 0.5 * (jnp.trace(gram) - index_dim - log_det + distance) / num_samples

    return model_prior_kl_fn


def get_analytical_hyperflow_model_prior_kl_fn(
    num_samples: float, sigma_0: float
) -> ModelPriorKlFn:
    """Returns (log q(u) - log N(u; 0, sigma_0² I)) / num_samples for a flow's sample u.

    The network output holds log q(u) in `extra["log_prob"]`, an array of one entry, and
    u in `extra["latent"]`, any pytree.

    >>> import numpy as np
    >>> from enn import losses, networks
    >>> kl = losses.get_analytical_hyperflow_model_prior_kl_fn(10, sigma_0=1.0)
    >>> sample = {"log_prob": np.array([0.0]), "latent": np.array([0.0])}
    >>> out = networks.OutputWithPrior(train=np.zeros([1, 1]), extra=sample)
    >>> round(float(kl(out, {}, None)), 3)  # ½ log(2π) / 10
    0.092

    Args:
      num_samples: number of training data.
      sigma_0: standard deviation of the prior.
    """
    _checks.positive(num_samples=num_samples, sigma_0=sigma_0)

    def model_prior_kl_fn(
        out: Output, params: hk.Params, index: base.Index
    ) -> jax.Array:
        log_posterior = jnp.squeeze(at_least_float32(extra_output(out, "log_prob")))
        log_prior = normal_log_prob(extra_output(out, "latent"), sigma_0)
        return (log_posterior - log_prior) / num_samples

    return model_prior_kl_fn


def log_normal_prob(
    x: chex.Array, mu: chex.Array | float = 0, sigma: chex.Array | float = 1
) -> jax.Array:
    """Returns log N(x; mu, sigma²), elementwise."""
    # Python numbers take the type of the arrays, with float64 enabled too.
    dtype = jnp.result_type(at_least_float32(x), mu, sigma)
    x, mu, sigma = (jnp.asarray(value, dtype) for value in (x, mu, sigma))
    log_sigma, normalised = jnp.log(sigma), (x - mu) / sigma
    return -0.5 * jnp.log(2 * jnp.pi) - log_sigma - 0.5 * jnp.square(normalised)


def log_softplus(x: chex.Array) -> jax.Array:
    """Returns log(log(1 + exp(x))), elementwise and accurate for any finite x.

    Where exp(x) is small, softplus underflows, and its logarithm is taken from the
    series x - exp(x) / 2 + O(exp(2x)). The result has the dtype of `x` if that is a
    floating-point one.
    """
    dtype = jnp.result_type(x, 0.0)
    x = at_least_float32(x)
    # Each branch gets arguments of its own range: else the gradient of the one not
    # taken is infinite, and times zero NaN. By `where` and not `minimum`, which halves
    # the gradient of the branch taken at -20 itself.
    is_small = x < -20
    small, large = jnp.where(is_small, x, -20), jnp.where(is_small, -20, x)
    series = small - jnp.exp(small) / 2
    return jnp.where(is_small, series, jnp.log(jax.nn.softplus(large))).astype(dtype)


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


def _split(params: hk.Params) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the leaves named `w` and the others, modules in sorted order."""
    leaves = list(hk.data_structures.traverse(params))
    weights = [at_least_float32(leaf) for _, name, leaf in leaves if name == "w"]
    others = [at_least_float32(leaf) for _, name, leaf in leaves if name != "w"]
    if not weights or not others:
        names = sorted({name for _, name, _ in leaves})
        raise ValueError(f"params must have leaves 'w' and others, got {names}.")
    return weights, others


def _same_size(**vectors: jax.Array) -> None:
    sizes = {name: vector.size for name, vector in vectors.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"Arrays must have the same size, got {sizes}.")
