"""Several losses at once: as a weighted sum, or one for training and some to log."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic

import chex
import haiku as hk
import jax

from enn import base
from enn.base import Data, Input, Output
from enn.losses.protocols import SingleLossFn


def combine_single_index_losses_as_metric(
    train_loss: SingleLossFn[Input, Output, Data],
    extra_losses: Mapping[str, SingleLossFn[Input, Output, Data]],
) -> SingleLossFn[Input, Output, Data]:
    """Returns `train_loss` with other losses at the same index among its metrics.

    All losses see the state that the combined loss is given; the new state is that of
    `train_loss`.

    Args:
      train_loss: gives loss, new state and metrics.
      extra_losses: for each name, adds the metrics `name:loss` and, for its own
        metrics, `name:metric`.
    """

    def combined_loss(
        apply: base.ApplyFn[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        index: base.Index,
    ) -> base.LossOutput:
        args = (apply, params, state, batch, index)
        return _with_metrics(train_loss(*args), extra_losses, args)

    return combined_loss


def combine_losses_as_metric(
    train_loss: base.LossFn[Input, Output, Data],
    extra_losses: Mapping[str, base.LossFn[Input, Output, Data]],
) -> base.LossFn[Input, Output, Data]:
    """Returns `train_loss` with other losses among its metrics.

    All losses see the same state and the same key, hence the same indices where they
    average over equally many. The new state is that of `train_loss`.

    Args:
      train_loss: gives loss, new state and metrics.
      extra_losses: for each name, adds the metrics `name:loss` and, for its own
        metrics, `name:metric`.
    """

    def combined_loss(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        args = (enn, params, state, batch, key)
        return _with_metrics(train_loss(*args), extra_losses, args)

    return combined_loss


def _with_metrics(
    trained: base.LossOutput, extra_losses: Mapping[str, Any], args: tuple[Any, ...]
) -> base.LossOutput:
    loss, (state, metrics) = trained
    for name, extra_loss in extra_losses.items():
        value, (_, extra_metrics) = extra_loss(*args)
        metrics = {**metrics, **_named_metrics(name, value, extra_metrics)}
    return loss, (state, metrics)


def _named_metrics(
    name: str, loss: chex.Array, metrics: base.LossMetrics
) -> base.LossMetrics:
    named = {f"{name}:{key}": value for key, value in metrics.items()}
    return {f"{name}:loss": loss, **named}


@dataclasses.dataclass
class CombineLossConfig(Generic[Input, Output, Data]):
    """One term of a sum of losses.

    Attributes:
      loss_fn: the loss.
      name: prefix of its metrics, different for each term.
      weight: factor of the loss in the sum.
    """

    loss_fn: base.LossFn[Input, Output, Data]
    name: str = "unnamed"
    weight: float = 1.0


def combine_losses(
    losses: Sequence[
        CombineLossConfig[Input, Output, Data] | base.LossFn[Input, Output, Data]
    ],
) -> base.LossFn[Input, Output, Data]:
    """Returns the weighted sum of losses, Σᵢ weightᵢ lossᵢ.

    The network state goes through the losses in order: each sees the state that the
    one before it returned, and the last one's is the new state, so that no update is
    lost. All losses get the same key, hence the same indices where they average over
    equally many. Metrics of a term are `name:loss`, without the weight, and
    `name:metric` for each of its own.

    Args:
      losses: terms of the sum; the i-th, if a bare loss, has the name `loss_i` and
        weight 1.

    Raises:
      ValueError: if there are no losses or two of one name.
    """
    terms = [
        loss
        if isinstance(loss, CombineLossConfig)
        else CombineLossConfig(loss, f"loss_{i}")
        for i, loss in enumerate(losses)
    ]
    counts = collections.Counter(term.name for term in terms)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated or not terms:
        raise ValueError(
            f"losses must be one or more of different names, got {list(counts)} "
            f"with {repeated} repeated."
        )

    def combined_loss(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        total: Any = 0
        metrics: base.LossMetrics = {}
        for term in terms:
            loss, (state, own_metrics) = term.loss_fn(enn, params, state, batch, key)
            # As between training steps, no gradient flows through the state.
            state = jax.lax.stop_gradient(state)
            total = total + term.weight * loss
            metrics |= _named_metrics(term.name, loss, own_metrics)
        return total, (state, metrics)

    return combined_loss
