"""Losses that keep a network near its prior away from the data.

In the distillation terms, `batched_out` holds outputs at several indices, stacked on a
new axis 0 of every array, and `distill_out` is the output at the mean index, which is
trained to predict the mean and variance over indices. Predictions are
`[num_index_samples, batch, num_outputs]` and `[batch, num_outputs]`; results are
scalars.
"""

import abc
import dataclasses
import logging
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.datasets.base import ArrayBatch
from enn.losses.single_index import log_softmax
from enn.metrics.base import at_least_float32, log_mean_exp
from enn.networks.base import (
    EnnArray,
    EnnNoState,
    Output,
    OutputWithPrior,
    extra_output,
)
from enn.networks.indexers import make_batch_indexer
from enn.networks.utils import parse_net_output, wrap_enn_no_state_as_enn


@runtime_checkable
class FakeInputGenerator(Protocol):
    """Makes inputs at which a network is kept near its prior."""

    def __call__(self, batch: ArrayBatch, key: chex.PRNGKey, /) -> chex.Array:
        """Returns inputs for `batch`, drawn with `key`."""
        ...


@dataclasses.dataclass(frozen=True)
class MatchingGaussianData(FakeInputGenerator):
    """Normal inputs of the shape of the batch, of standard deviation `scale`.

    >>> import jax, numpy as np
    >>> from enn import datasets, losses
    >>> batch = datasets.ArrayBatch(x=np.zeros([1000, 2]), y=np.zeros([1000, 1]))
    >>> x = losses.MatchingGaussianData(scale=3.0)(batch, jax.random.key(0))
    >>> x.shape, round(float(x.std()))
    ((1000, 2), 3)
    """

    scale: float = 1.0

    def __call__(self, batch: ArrayBatch, key: chex.PRNGKey) -> jax.Array:
        """Returns inputs of the shape of `batch.x`."""
        return jax.random.normal(key, jnp.shape(batch.x)) * self.scale


def make_gaussian_dataset(
    batch_size: int, input_dim: int, seed: int = 0
) -> Iterator[ArrayBatch]:
    """Yields batches of standard normal inputs with targets of one, endlessly.

    >>> from enn import losses
    >>> batch = next(losses.make_gaussian_dataset(batch_size=1000, input_dim=2))
    >>> batch.x.shape, round(float(batch.x.std())), float(batch.y.max())
    ((1000, 2), 1, 1.0)
    """
    for key in hk.PRNGSequence(seed):
        x = jax.random.normal(key, [batch_size, input_dim])
        yield ArrayBatch(x=x, y=jnp.ones([batch_size, 1]))


def generate_batched_forward_at_data(
    num_index_sample: int,
    x: chex.Array,
    enn: EnnNoState,
    params: hk.Params,
    key: chex.PRNGKey,
) -> Output:
    """`generate_batched_forward_at_data_with_state` for networks without state.

    >>> import jax, numpy as np
    >>> from enn import losses, networks
    >>> sphere, key = networks.SphereIndexer(2), jax.random.key(0)
    >>> enn = networks.EnnNoState(lambda params, x, z: x @ z, None, sphere)
    >>> out = losses.generate_batched_forward_at_data(3, np.eye(2), enn, {}, key)
    >>> np.allclose((out**2).sum(axis=1), 2.0)  # ‖z‖² of three indices
    True
    """
    with_state = wrap_enn_no_state_as_enn(enn)
    return generate_batched_forward_at_data_with_state(
        num_index_sample, x, with_state, params, key
    )


def generate_batched_forward_at_data_with_state(
    num_index_sample: int,
    x: chex.Array,
    enn: EnnArray,
    params: hk.Params,
    key: chex.PRNGKey,
    state: hk.State | None = None,
) -> Output:
    """Returns the network output at `x` for random indices, stacked on a new axis 0.

    >>> import jax, numpy as np
    >>> from enn import base, losses, networks
    >>> def apply(params, state, x, z):
    ...     return x @ z, state
    >>> enn = base.EpistemicNetwork(apply, None, networks.SphereIndexer(2))
    >>> out = losses.generate_batched_forward_at_data_with_state(
    ...     3, np.eye(2), enn, {}, jax.random.key(0)
    ... )
    >>> np.allclose((out**2).sum(axis=1), 2.0)  # ‖z‖² of three indices
    True

    Args:
      num_index_sample: number of indices; index s is drawn with `fold_in(key, s)`.
      x: inputs, `[batch, ...]`.
      enn: the network.
      params: its parameters.
      key: draws the indices.
      state: network state of every forward pass, empty if None; the new states are
        dropped.

    Raises:
      ValueError: unless `num_index_sample` is an integer >= 1.
    """
    indices = make_batch_indexer(enn.indexer, num_index_sample)(key)

    def forward(index: base.Index) -> Output:
        return enn.apply(params, state or {}, x, index)[0]

    return jax.vmap(forward)(indices)


def l2_training_penalty(batched_out: Output) -> jax.Array:
    """Returns ½ mean(train²), the size of what the network adds to its prior.

    Zero, with a warning in the log, for outputs that are plain arrays, in which
    prior and trainable part cannot be told apart.
    """
    if isinstance(batched_out, OutputWithPrior):
        return 0.5 * jnp.mean(jnp.square(at_least_float32(batched_out.train)))
    logging.warning(
        "The network does not return an OutputWithPrior: its prior loss is 0."
    )
    return jnp.zeros_like(batched_out, shape=())


def variance_kl(var: chex.Array, pred_log_var: chex.Array) -> jax.Array:
    """Returns KL(N(0, var) ‖ N(0, exp(pred_log_var))), elementwise.

    Equation: ½ (l - log v + v exp(-l) - 1). A variance of zero, such as that of
    a single sample, is replaced by the smallest positive normal number, so that the
    result is finite.
    """
    var, pred_log_var = at_least_float32(var), at_least_float32(pred_log_var)
    log_var = jnp.log(jnp.maximum(var, jnp.finfo(var.dtype).tiny))
    # v exp(-l) - 1 - log(v exp(-l)), without the differences of close numbers.
    log_ratio = log_var - pred_log_var
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio)


def distill_mean_regression(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns the mean squared gap between mean prediction and distilled prediction.

    Equation: mean over batch and outputs of (meanₛ fₛ - q)².

    Raises:
      ValueError: if their shapes differ.
    """
    mean = jnp.mean(_predictions(batched_out), axis=0)
    distilled = at_least_float32(parse_net_output(distill_out))
    _same_shape("distill_out", distilled, mean)
    return jnp.mean(jnp.square(distilled - mean))


def distill_mean_classification(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns KL(m ‖ q), for class probabilities m averaged over indices, q distilled.

    Equation: mean over the batch of Σ_c m_c log(m_c / q_c), with 0 log 0 = 0.

    Raises:
      ValueError: if the shapes differ.
    """
    log_mean = log_mean_exp(log_softmax(_predictions(batched_out)))
    log_distilled = log_softmax(parse_net_output(distill_out))
    _same_shape("distill_out", log_distilled, log_mean)
    mean = jnp.exp(log_mean)
    log_ratio = jnp.where(mean > 0, log_mean - log_distilled, 0)
    return jnp.mean(jnp.sum(mean * log_ratio, axis=1))


def distill_var_regression(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns the mean of KL(N(0, varₛ fₛ) ‖ N(0, exp(log_var))) for predictions fₛ.

    `log_var` is an entry of the `extra` of `distill_out`; see `variance_kl`.

    Raises:
      ValueError: if `distill_out` has no `log_var` or their shapes differ.
    """
    return _mean_variance_kl(_predictions(batched_out), distill_out)


def distill_var_classification(batched_out: Output, distill_out: Output) -> jax.Array:
    """Returns the mean of KL(N(0, varₛ pₛ) ‖ N(0, exp(log_var))), pₛ the probabilities.

    `log_var` is an entry of the `extra` of `distill_out`; see `variance_kl`.

    Raises:
      ValueError: if `distill_out` has no `log_var` or their shapes differ.
    """
    log_probs = log_softmax(_predictions(batched_out))
    # p and p - 1 have one variance; of the two, the one that rounding leaves intact.
    near_one = jnp.all(log_probs > -0.5, axis=0, keepdims=True)
    values = jnp.where(near_one, jnp.expm1(log_probs), jnp.exp(log_probs))
    return _mean_variance_kl(values, distill_out)


def _predictions(batched_out: Output) -> jax.Array:
    return at_least_float32(jax.vmap(parse_net_output)(batched_out))


def _mean_variance_kl(values: jax.Array, distill_out: Output) -> jax.Array:
    log_var = extra_output(distill_out, "log_var")
    variance = jnp.var(values, axis=0)
    _same_shape("extra['log_var']", log_var, variance)
    return jnp.mean(variance_kl(variance, log_var))


def _same_shape(name: str, array: chex.Array, batched: jax.Array) -> None:
    shape = batched.shape
    _checks.shape(name, array, shape, f"of the output at one index, {list(shape)}")


@dataclasses.dataclass(frozen=True)
class PriorLoss(abc.ABC):
    """Keeps predictions at the prior: `scale` · ½ mean(train²) at fake inputs.

    With `distill_index`, and an indexer that has a `mean_index`, adds terms that train
    the output at the mean index to predict the mean over indices, and its
    `extra["log_var"]` the variance. Outputs that are plain arrays give zero, see
    `l2_training_penalty`.

    Called as `loss(enn, params, state, batch, key)`. Network state is used but not
    updated: batch norm should learn its statistics from data. No metrics.

    Attributes:
      num_index_sample: number of indices, drawn with the first half of the key.
      input_generator: `(batch, key) -> x`, with the second half.
      scale: factor of the first term; the distillation terms have none.
      distill_index: whether to add the distillation terms.

    Raises:
      ValueError: unless `num_index_sample` is an integer >= 1.
    """

    num_index_sample: int
    input_generator: FakeInputGenerator = dataclasses.field(
        default_factory=MatchingGaussianData
    )
    scale: float = 1.0
    distill_index: bool = False

    def __post_init__(self) -> None:
        _checks.positive_int("num_index_sample", self.num_index_sample)

    def __call__(
        self,
        enn: EnnArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        index_key, data_key = jax.random.split(key)
        x = self.input_generator(batch, data_key)
        outs = generate_batched_forward_at_data_with_state(
            self.num_index_sample, x, enn, params, index_key, state
        )
        loss = self.scale * l2_training_penalty(outs)
        if self.distill_index and hasattr(enn.indexer, "mean_index"):
            distill_out, _ = enn.apply(params, state, x, enn.indexer.mean_index)
            loss += self._distillation(outs, distill_out)
        return loss, (state, {})

    @abc.abstractmethod
    def _distillation(self, outs: Output, distill_out: Output) -> jax.Array:
        """Returns the two distillation terms, of mean and variance."""


@dataclasses.dataclass(frozen=True)
class RegressionPriorLoss(PriorLoss):
    """`PriorLoss` that distils mean and variance of predictions.

    scale · ½ mean(train²) + `distill_mean_regression` + `distill_var_regression`, the
    last two with `distill_index` only.

    >>> import jax, numpy as np
    >>> from enn import base, datasets, losses, networks
    >>> def apply(params, state, x, z):
    ...     return networks.OutputWithPrior(train=2.0 + 0 * x, prior=x), state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> batch = datasets.ArrayBatch(x=np.zeros([3, 1]), y=np.zeros([3, 1]))
    >>> loss_fn = losses.RegressionPriorLoss(num_index_sample=5, scale=0.1)
    >>> loss, _ = loss_fn(enn, {}, {}, batch, jax.random.key(0))
    >>> round(float(loss), 3)  # 0.1 · ½ · 2²
    0.2
    """

    def _distillation(self, outs: Output, distill_out: Output) -> jax.Array:
        mean = distill_mean_regression(outs, distill_out)
        return mean + distill_var_regression(outs, distill_out)


@dataclasses.dataclass(frozen=True)
class ClassificationPriorLoss(PriorLoss):
    """`PriorLoss` that distils mean and variance of class probabilities.

    scale · ½ mean(train²) + `distill_mean_classification` +
    `distill_var_classification`, the last two with `distill_index` only.

    >>> import jax, numpy as np
    >>> from enn import base, datasets, losses, networks
    >>> def apply(params, state, x, z):
    ...     return networks.OutputWithPrior(train=0 * x, prior=x), state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> batch = datasets.ArrayBatch(x=np.zeros([3, 2]), y=np.zeros([3, 1]))
    >>> loss_fn = losses.ClassificationPriorLoss(num_index_sample=5)
    >>> loss, _ = loss_fn(enn, {}, {}, batch, jax.random.key(0))
    >>> float(loss)  # The network is at its prior.
    0.0
    """

    def _distillation(self, outs: Output, distill_out: Output) -> jax.Array:
        mean = distill_mean_classification(outs, distill_out)
        return mean + distill_var_classification(outs, distill_out)
