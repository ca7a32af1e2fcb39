"""Losses made of losses, under the names that research code imports."""

from enn.losses.combine import (
    CombineLossConfig,
    combine_losses,
    combine_losses_as_metric,
    combine_single_index_losses_as_metric,
)
from enn.losses.no_state import (
    CombineLossConfigNoState,
    add_data_noise_no_state,
    add_l2_weight_decay_no_state,
    combine_losses_no_state,
    combine_losses_no_state_as_metric,
    combine_single_index_losses_no_state_as_metric,
    wrap_loss_no_state_as_loss,
    wrap_single_loss_no_state_as_single_loss,
)
from enn.losses.noise import add_data_noise
from enn.losses.weight_decay import (
    PredicateFn,
    add_l2_weight_decay,
    l2_weights_with_predicate,
)

__all__ = [
    "CombineLossConfig",
    "CombineLossConfigNoState",
    "PredicateFn",
    "add_data_noise",
    "add_data_noise_no_state",
    "add_l2_weight_decay",
    "add_l2_weight_decay_no_state",
    "combine_losses",
    "combine_losses_as_metric",
    "combine_losses_no_state",
    "combine_losses_no_state_as_metric",
    "combine_single_index_losses_as_metric",
    "combine_single_index_losses_no_state_as_metric",
    "l2_weights_with_predicate",
    "wrap_loss_no_state_as_loss",
    "wrap_single_loss_no_state_as_single_loss",
]
