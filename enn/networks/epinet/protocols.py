"""What an epinet is: a network on a base network's inputs and hidden features."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import chex
import haiku as hk

from enn import base
from enn.networks.base import Output, OutputWithPrior

BaseHiddenParser = Callable[[Output], chex.Array]
"""Output of a base network -> hidden features, `[batch, num_hidden]`."""


@runtime_checkable
class EpinetApplyWithState(Protocol):
    """Forward pass of an epinet at one epistemic index."""

    def __call__(
        self,
        params: hk.Params,
        state: hk.State,
        inputs: chex.Array,
        index: base.Index,
        hidden: chex.Array,
    ) -> tuple[OutputWithPrior, hk.State]:
        """Returns the output at `inputs` and `hidden`, and the new state."""
        ...


@runtime_checkable
class EpinetInitWithState(Protocol):
    """Initialisation of an epinet."""

    def __call__(
        self,
        key: chex.PRNGKey,
        inputs: chex.Array,
        index: base.Index,
        hidden: chex.Array,
    ) -> tuple[hk.Params, hk.State]:
        """Returns initial parameters and state."""
        ...


@dataclasses.dataclass(eq=False)
class EpinetWithState:
    """A network that adds uncertainty to a base network: σ(x, φ(x), z).

    Osband et al., 2021, Epistemic neural networks, https://arxiv.org/abs/2107.08924.
    Compares and hashes by identity.

    Attributes:
      apply: `(params, state, inputs, index, hidden) -> (output, new_state)`.
      init: `(key, inputs, index, hidden) -> (params, state)`.
      indexer: `key -> index`, one draw from the reference distribution.
    """

    apply: EpinetApplyWithState
    init: EpinetInitWithState
    indexer: base.EpistemicIndexer
