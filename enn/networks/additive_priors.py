"""Networks with a fixed prior function added to what they learn.

Osband et al., 2018, Randomized prior functions for deep reinforcement learning,
https://arxiv.org/abs/1806.03335.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import chex
import haiku as hk
import jax

from enn import base
from enn.networks.base import EnnArray, EnnNoState, Output, PriorFn
from enn.networks.no_state import wrap_enn_no_state_as_enn
from enn.networks.outputs import parse_to_output_with_prior

WARN = (
    "Prior parameters sit among the trainable ones: they get no gradient through the "
    "output, but weight decay and the like still move them."
)


class EnnWithAdditivePrior(EnnArray):
    """`enn` with `prior_scale * prior_fn(inputs, index)` added to its prior.

    Args:
      enn: the network that trains.
      prior_fn: fixed function of inputs and index, `[batch, num_outputs]`.
      prior_scale: factor of the prior function.
    """

    def __init__(self, enn: EnnArray, prior_fn: PriorFn, prior_scale: float = 1.0):
        def apply(
            params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
        ) -> tuple[Output, hk.State]:
            # First, since it knows what is wrong with inputs of another size.
            prior = prior_scale * prior_fn(inputs, index)
            net_out, state = enn.apply(params, state, inputs, index)
            out = parse_to_output_with_prior(net_out)
            return out._replace(prior=out.prior + prior), state

        super().__init__(apply, enn.init, enn.indexer)


class EnnNoStateWithAdditivePrior(EnnNoState):
    """As `EnnWithAdditivePrior`, for a network without network state."""

    def __init__(self, enn: EnnNoState, prior_fn: PriorFn, prior_scale: float = 1.0):
        with_prior = EnnWithAdditivePrior(
            wrap_enn_no_state_as_enn(enn), prior_fn, prior_scale
        )

        def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
            return with_prior.apply(params, {}, inputs, index)[0]

        super().__init__(apply, enn.init, enn.indexer)


@dataclasses.dataclass
class NetworkWithAdditivePrior(hk.Module):
    """A Haiku module with a second one as its prior: `net + prior_scale · prior_net`.

    The prior's parameters are part of the trainable tree and are initialised first.
    No gradient reaches them, but penalties on all parameters, such as weight decay,
    still move them; a warning, logged once, says so.

    Attributes:
      net: the module that trains.
      prior_net: module of the same output; it gets the same arguments.
      prior_scale: factor of the prior's output.
    """

    net: Callable[..., chex.Array]
    prior_net: Callable[..., chex.Array]
    prior_scale: float = 1.0

    def __call__(self, *args: Any, **kwargs: Any) -> chex.Array:
        _warn_once()
        prior = jax.lax.stop_gradient(self.prior_net(*args, **kwargs))
        return self.net(*args, **kwargs) + prior * self.prior_scale


@functools.cache
def _warn_once() -> None:
    logging.getLogger(__name__).warning(WARN)
