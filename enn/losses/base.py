"""The types of losses, and averages over epistemic indices, under their old names."""

from enn.losses.averaging import average_single_index_loss
from enn.losses.no_state import average_single_index_loss_no_state
from enn.losses.protocols import (
    LossFnArray,
    LossFnNoState,
    LossOutputNoState,
    SingleLossFn,
    SingleLossFnArray,
    SingleLossFnNoState,
)

__all__ = [
    "LossFnArray",
    "LossFnNoState",
    "LossOutputNoState",
    "SingleLossFn",
    "SingleLossFnArray",
    "SingleLossFnNoState",
    "average_single_index_loss",
    "average_single_index_loss_no_state",
]
