"""Losses that keep a network near its prior away from the data."""

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
from enn.losses.distillation import (
    distill_mean_classification,
    distill_mean_regression,
    distill_var_classification,
    distill_var_regression,
    variance_kl,
)
from enn.networks.base import EnnArray, EnnNoState, Output, OutputWithPrior
from enn.networks.indexers import make_batch_indexer
from enn.networks.no_state import wrap_enn_no_state_as_enn

__all__ = [
    "ClassificationPriorLoss",
    "FakeInputGenerator",
    "MatchingGaussianData",
    "PriorLoss",
    "RegressionPriorLoss",
    "distill_mean_classification",
    "distill_mean_regression",
    "distill_var_classification",
    "distill_var_regression",
    "generate_batched_forward_at_data",
    "generate_batched_forward_at_data_with_state",
    "l2_training_penalty",
    "make_gaussian_dataset",
    "variance_kl",
]


@runtime_checkable
class FakeInputGenerator(Protocol):
    """Makes inputs at which a network is held to its prior."""

    def __call__(self, batch: ArrayBatch, key: chex.PRNGKey) -> chex.Array:
        """Returns inputs for `batch`, drawn with `key`."""
        ...


@dataclasses.dataclass(frozen=True)
class MatchingGaussianData(FakeInputGenerator):
    """Normal inputs of the shape of the batch, of standard deviation `scale`."""

    scale: float = 1.0

    def __call__(self, batch: ArrayBatch, key: chex.PRNGKey) -> chex.Array:
        """Returns inputs of the shape of `batch.x`."""
        return jax.random.normal(key, jnp.shape(batch.x)) * self.scale


def make_gaussian_dataset(
    batch_size: int, input_dim: int, seed: int = 0
) -> Iterator[ArrayBatch]:
    """Yields batches of standard normal inputs, with targets of one, without end."""
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
    """`generate_batched_forward_at_data_with_state` for networks without state."""
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

    Args:
      num_index_sample: number of indices; index s is drawn with `fold_in(key, s)`.
      x: inputs, `[batch, ...]`.
      enn: the network.
      params: its parameters.
      key: draws the indices.
      state: network state of every forward pass, empty if None; the new states are
        dropped.

    Raises:
      ValueError: if `num_index_sample` is no integer >= 1.
    """
    indices = make_batch_indexer(enn.indexer, num_index_sample)(key)

    def forward(index: base.Index) -> Output:
        return enn.apply(params, state or {}, x, index)[0]

    return jax.vmap(forward)(indices)


def l2_training_penalty(batched_out: Output) -> jax.Array:
    """Returns ½ mean(train²), the size of what the network adds to its prior.

    Zero, with a warning in the log, for outputs that are plain arrays: they do not say
    which part of them is the prior.
    """
    if isinstance(batched_out, OutputWithPrior):
        return 0.5 * jnp.mean(jnp.square(batched_out.train))
    logging.warning("The network returns no OutputWithPrior: its prior loss is 0.")
    return jnp.zeros_like(batched_out, shape=())


@dataclasses.dataclass(frozen=True)
class PriorLoss(abc.ABC):
    """Keeps predictions at the prior: `scale` · ½ mean(train²) at fake inputs.

    With `distill_index`, and an indexer that has a `mean_index`, adds terms that make
    the output at that index tell the mean over indices by its predictions, and the
    variance by `extra["log_var"]`. Outputs that are plain arrays give zero, see
    `l2_training_penalty`.

    Called as `loss(enn, params, state, batch, key)`. Network state is used and not
    changed: batch norm should learn its statistics from data. No metrics.

    Attributes:
      num_index_sample: number of indices, drawn with the first half of the key.
      input_generator: `(batch, key) -> x`, with the second half.
      scale: factor of the first term; the distillation terms have none.
      distill_index: whether to add the distillation terms.

    Raises:
      ValueError: if `num_index_sample` is no integer >= 1.
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
    """`PriorLoss` that distils mean and variance of predictions."""

    def _distillation(self, outs: Output, distill_out: Output) -> jax.Array:
        mean = distill_mean_regression(outs, distill_out)
        return mean + distill_var_regression(outs, distill_out)


@dataclasses.dataclass(frozen=True)
class ClassificationPriorLoss(PriorLoss):
    """`PriorLoss` that distils mean and variance of class probabilities."""

    def _distillation(self, outs: Output, distill_out: Output) -> jax.Array:
        mean = distill_mean_classification(outs, distill_out)
        return mean + distill_var_classification(outs, distill_out)
