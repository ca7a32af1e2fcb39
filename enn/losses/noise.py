"""Data noise inside a loss."""

import haiku as hk

from enn import base
from enn.base import Data, Input, Output
from enn.data_noise.base import DataNoiseBase
from enn.losses.protocols import SingleLossFn


def add_data_noise(
    single_loss: SingleLossFn[Input, Output, Data], noise_fn: DataNoiseBase[Data]
) -> SingleLossFn[Input, Output, Data]:
    """Returns `single_loss` on `noise_fn(batch, index)`, the batch as an index sees it.

    Args:
      single_loss: the loss to evaluate.
      noise_fn: such as `enn.data_noise.BootstrapNoise`.
    """

    def noisy_loss(
        apply: base.ApplyFn[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        index: base.Index,
    ) -> base.LossOutput:
        return single_loss(apply, params, state, noise_fn(batch, index), index)

    return noisy_loss
