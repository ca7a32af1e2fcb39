"""Parts of the evidence lower bound for a variational last layer, without sampling.

They read what `enn.networks.VariationalLastLayer` puts into `extra`: m and q, mean and
variance of the outputs over the weights, the divergence of these, and σ (Harrison et
al., 2024, https://arxiv.org/abs/2404.11599, section 3). `ElboLoss` puts them together:

>>> from enn import losses
>>> single_loss = losses.ElboLoss(
...     losses.get_last_layer_categorical_loglike_fn(num_classes=10),
...     losses.get_last_layer_kl_fn(num_samples=60_000),
... )
>>> loss_fn = losses.average_single_index_loss(single_loss, 1)
"""

import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.datasets.base import ArrayBatch
from enn.losses.single_index import (
    LogLikelihoodFn,
    ModelPriorKlFn,
    label_cross_entropy,
    regression_errors,
)
from enn.losses.vi_losses import log_normal_prob
from enn.metrics.base import at_least_float32
from enn.networks.base import Output, extra_output


def get_last_layer_gaussian_loglike_fn() -> LogLikelihoodFn:
    """Returns the expected log-likelihood of a row, exactly.

    mean_b Σ_c [log N(y_bc; m_bc, σ_c²) - q_bc / (2 σ_c²)], for targets
    `[batch, num_outputs]`; of one output `batch.y` may be `[batch]`.

    Harrison et al., 2024, https://arxiv.org/abs/2404.11599, section 3.

    >>> import numpy as np
    >>> from enn import datasets, losses, networks
    >>> zero, one = np.zeros([1, 1]), np.ones([1, 1])
    >>> parts = dict(last_layer_mean=zero, last_layer_variance=one, noise_std=one[0])
    >>> out = networks.OutputWithPrior(zero, extra=parts)
    >>> log_likelihood = losses.get_last_layer_gaussian_loglike_fn()
    >>> value = log_likelihood(out, datasets.ArrayBatch(x=zero, y=zero))
    >>> round(float(value), 3)  # -½ log 2π - ½
    -1.419
    """

    def log_likelihood_fn(out: Output, batch: ArrayBatch) -> jax.Array:
        errors = regression_errors(extra_output(out, "last_layer_mean"), batch.y)
        variance = at_least_float32(extra_output(out, "last_layer_variance"))
        std = at_least_float32(extra_output(out, "noise_std"))[None]
        terms = log_normal_prob(errors / std) - jnp.log(std)
        terms = terms - variance / (2 * jnp.square(std))
        return jnp.mean(jnp.sum(terms, axis=1))

    return log_likelihood_fn


def get_last_layer_categorical_loglike_fn(num_classes: int) -> LogLikelihoodFn:
    """Returns a lower bound of the expected log-probability of the label, by Jensen.

    mean_b [m_by - log Σ_c exp(m_bc + q_bc / 2)]. Labels are as in `XentLoss`.

    Harrison et al., 2024, https://arxiv.org/abs/2404.11599, section 3.

    >>> import numpy as np
    >>> from enn import datasets, losses, networks
    >>> zeros, label = np.zeros([1, 2]), np.array([[1]])
    >>> last_layer = {"last_layer_mean": zeros, "last_layer_variance": zeros}
    >>> out = networks.OutputWithPrior(zeros, extra=last_layer)
    >>> log_likelihood = losses.get_last_layer_categorical_loglike_fn(num_classes=2)
    >>> value = log_likelihood(out, datasets.ArrayBatch(x=zeros, y=label))
    >>> round(float(value), 3)  # Known weights: log ½
    -0.693

    Args:
      num_classes: number of classes.
    """
    _checks.positive_int("num_classes", num_classes)

    def log_likelihood_fn(out: Output, batch: ArrayBatch) -> jax.Array:
        mean = at_least_float32(extra_output(out, "last_layer_mean"))
        half = at_least_float32(extra_output(out, "last_layer_variance")) / 2
        log_probs = -label_cross_entropy(mean + half, batch.y, num_classes)[:, 0]
        labels = jnp.asarray(_checks.as_column("batch.y", batch.y), jnp.int32)
        # Of a label out of range 0, as of the cross-entropy.
        is_label = jax.nn.one_hot(labels[:, 0], num_classes, dtype=bool)
        own = jnp.sum(half, axis=1, where=is_label)
        return jnp.mean(log_probs - own)

    return log_likelihood_fn


def get_last_layer_kl_fn(
    num_samples: float, noise_scale: float = 0.01, dof: float = 1.0
) -> ModelPriorKlFn:
    """Returns the divergence of a variational last layer from its prior, / num_samples.

    Where the noise is learned (a parameter `log_noise_std`), less the logarithm of its
    inverse Wishart prior, Σ_c [½ (dof + C + 1) log σ_c⁻² - ½ noise_scale / σ_c²].

    Harrison et al., 2024, https://arxiv.org/abs/2404.11599, section 3.

    >>> import numpy as np
    >>> from enn import losses, networks
    >>> out = networks.OutputWithPrior(
    ...     np.zeros([1, 2]), extra={"last_layer_kl": np.float32(5.0)}
    ... )
    >>> kl = losses.get_last_layer_kl_fn(num_samples=100)
    >>> round(float(kl(out, {}, 0)), 3)
    0.05

    Args:
      num_samples: number of training data, > 0. Both parts are divided by it.
      noise_scale: scale of that prior, in squared units of the target.
      dof: its degrees of freedom.

    Raises:
      ValueError: for a number that is not > 0; by the function, for a network without
        a variational last layer.
    """
    _checks.positive(num_samples=num_samples, noise_scale=noise_scale, dof=dof)

    def model_prior_kl_fn(
        out: Output, params: hk.Params, index: base.Index
    ) -> jax.Array:
        kl = at_least_float32(extra_output(out, "last_layer_kl"))
        if any({"log_scale", "log_noise_std"} <= set(m) for m in params.values()):
            precision = at_least_float32(extra_output(out, "noise_std")) ** -2.0
            terms = (dof + precision.size + 1) * jnp.log(precision)
            kl = kl - 0.5 * jnp.sum(terms - noise_scale * precision)
        return kl / num_samples

    return model_prior_kl_fn
