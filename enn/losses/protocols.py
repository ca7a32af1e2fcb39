"""What a loss at one epistemic index is, and what losses without state are."""

from typing import Any, Protocol, runtime_checkable

import chex
import haiku as hk

from enn import base
from enn.base import Data, Input, Output
from enn.datasets.base import ArrayBatch
from enn.networks import base as networks_base

LossFnArray = base.LossFn[chex.Array, networks_base.Output, ArrayBatch]

LossOutputNoState = tuple[chex.Array, base.LossMetrics]


@runtime_checkable
class SingleLossFn(Protocol[Input, Output, Data]):
    """Loss on a batch at one epistemic index."""

    def __call__(
        self,
        apply: base.ApplyFn[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        index: base.Index,
    ) -> base.LossOutput:
        """Returns `(loss, (new_state, metrics))` with scalar loss and metrics."""
        ...


SingleLossFnArray = SingleLossFn[chex.Array, networks_base.Output, ArrayBatch]


@runtime_checkable
class LossFnNoState(Protocol):
    """Loss of an ENN without network state; see `enn.base.LossFn`."""

    def __call__(
        self,
        enn: networks_base.EnnNoState,
        params: hk.Params,
        batch: Any,
        key: chex.PRNGKey,
    ) -> LossOutputNoState:
        """Returns `(loss, metrics)`."""
        ...


@runtime_checkable
class SingleLossFnNoState(Protocol):
    """Loss at one epistemic index of an ENN without network state."""

    def __call__(
        self,
        apply: networks_base.ApplyNoState,
        params: hk.Params,
        batch: Any,
        index: base.Index,
    ) -> LossOutputNoState:
        """Returns `(loss, metrics)`."""
        ...
