"""Losses of networks without state as thin adapters around those with state.

Each adapter also adapts the network that the loss is given.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import haiku as hk

from enn import base
from enn.data_noise.base import DataNoiseBase
from enn.losses import averaging, combine, noise, weight_decay
from enn.losses.protocols import (
    LossFnArray,
    LossFnNoState,
    LossOutputNoState,
    SingleLossFnArray,
    SingleLossFnNoState,
)
from enn.networks.base import ApplyArray, ApplyNoState, EnnArray, EnnNoState, Output
from enn.networks.no_state import (
    wrap_apply_no_state_as_apply,
    wrap_enn_as_enn_no_state,
    wrap_enn_no_state_as_enn,
)


def wrap_single_loss_as_single_loss_no_state(
    single_loss: SingleLossFnArray, constant_state: hk.State | None = None
) -> SingleLossFnNoState:
    """Returns `single_loss` for networks without state.

    Args:
      single_loss: called with a network that accepts and ignores a state.
      constant_state: the state that it is given, empty if None.
    """

    def new_loss(
        apply: ApplyNoState, params: hk.Params, batch: Any, index: base.Index
    ) -> LossOutputNoState:
        apply_with_state = wrap_apply_no_state_as_apply(apply)
        state = constant_state or {}
        loss, (_, metrics) = single_loss(apply_with_state, params, state, batch, index)
        return loss, metrics

    return new_loss


def wrap_single_loss_no_state_as_single_loss(
    single_loss: SingleLossFnNoState, constant_state: hk.State | None = None
) -> SingleLossFnArray:
    """Returns `single_loss` for networks with state.

    Args:
      single_loss: called with a network without state.
      constant_state: the state of every forward pass, whatever state the loss is
        given, and the new state that it returns; empty if None.
    """
    constant = constant_state or {}

    def new_loss(
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: Any,
        index: base.Index,
    ) -> base.LossOutput:
        def apply_no_state(
            params: hk.Params, inputs: chex.Array, index: base.Index
        ) -> Output:
            return apply(params, constant, inputs, index)[0]

        loss, metrics = single_loss(apply_no_state, params, batch, index)
        return loss, (constant, metrics)

    return new_loss


def wrap_loss_as_loss_no_state(loss_fn: LossFnArray) -> LossFnNoState:
    """Returns `loss_fn` for networks without state."""

    def new_loss(
        enn: EnnNoState, params: hk.Params, batch: Any, key: chex.PRNGKey
    ) -> LossOutputNoState:
        enn_with_state = wrap_enn_no_state_as_enn(enn)
        loss, (_, metrics) = loss_fn(enn_with_state, params, {}, batch, key)
        return loss, metrics

    return new_loss


def wrap_loss_no_state_as_loss(
    loss_fn: LossFnNoState, constant_state: hk.State | None = None
) -> LossFnArray:
    """Returns `loss_fn` for networks with state.

    Args:
      loss_fn: called with a network without state.
      constant_state: the state of every forward pass, whatever state the loss is
        given, and the new state that it returns; empty if None.
    """

    def new_loss(
        enn: EnnArray,
        params: hk.Params,
        state: hk.State,
        batch: Any,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        enn_no_state = wrap_enn_as_enn_no_state(enn, constant_state)
        loss, metrics = loss_fn(enn_no_state, params, batch, key)
        return loss, (constant_state or {}, metrics)

    return new_loss


def average_single_index_loss_no_state(
    single_loss: SingleLossFnNoState, num_index_samples: int = 1
) -> LossFnNoState:
    """`average_single_index_loss` for networks without state."""
    with_state = wrap_single_loss_no_state_as_single_loss(single_loss)
    averaged = averaging.average_single_index_loss(with_state, num_index_samples)
    return wrap_loss_as_loss_no_state(averaged)


def add_data_noise_no_state(
    single_loss: SingleLossFnNoState, noise_fn: DataNoiseBase[Any]
) -> SingleLossFnNoState:
    """`add_data_noise` for networks without state."""
    with_state = wrap_single_loss_no_state_as_single_loss(single_loss)
    noisy = noise.add_data_noise(with_state, noise_fn)
    return wrap_single_loss_as_single_loss_no_state(noisy)


def add_l2_weight_decay_no_state(
    loss_fn: LossFnNoState,
    scale: float | Callable[[hk.Params], hk.Params],
    predicate: weight_decay.PredicateFn | None = None,
) -> LossFnNoState:
    """`add_l2_weight_decay` for networks without state."""
    with_state = wrap_loss_no_state_as_loss(loss_fn)
    decayed = weight_decay.add_l2_weight_decay(with_state, scale, predicate)
    return wrap_loss_as_loss_no_state(decayed)


def combine_single_index_losses_no_state_as_metric(
    train_loss: SingleLossFnNoState, extra_losses: Mapping[str, SingleLossFnNoState]
) -> SingleLossFnNoState:
    """`combine_single_index_losses_as_metric` for networks without state."""
    wrap = wrap_single_loss_no_state_as_single_loss
    combined = combine.combine_single_index_losses_as_metric(
        wrap(train_loss), {name: wrap(loss) for name, loss in extra_losses.items()}
    )
    return wrap_single_loss_as_single_loss_no_state(combined)


def combine_losses_no_state_as_metric(
    train_loss: LossFnNoState, extra_losses: Mapping[str, LossFnNoState]
) -> LossFnNoState:
    """`combine_losses_as_metric` for networks without state."""
    wrap = wrap_loss_no_state_as_loss
    combined = combine.combine_losses_as_metric(
        wrap(train_loss), {name: wrap(loss) for name, loss in extra_losses.items()}
    )
    return wrap_loss_as_loss_no_state(combined)


@dataclasses.dataclass
class CombineLossConfigNoState:
    """`CombineLossConfig` for networks without state."""

    loss_fn: LossFnNoState
    name: str = "unnamed"
    weight: float = 1.0


def combine_losses_no_state(
    losses: Sequence[CombineLossConfigNoState | LossFnNoState],
) -> LossFnNoState:
    """`combine_losses` for networks without state."""
    wrap = wrap_loss_no_state_as_loss
    combined = combine.combine_losses(
        [
            combine.CombineLossConfig(wrap(loss.loss_fn), loss.name, loss.weight)
            if isinstance(loss, CombineLossConfigNoState)
            else wrap(loss)
            for loss in losses
        ]
    )
    return wrap_loss_as_loss_no_state(combined)
