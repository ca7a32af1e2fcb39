"""Reading, converting and scaling what a network returns."""

from typing import Any

import chex
import haiku as hk
import jax.numpy as jnp

from enn import base
from enn.networks.base import EnnArray, Output, OutputWithPrior


def parse_net_output(net_out: Output) -> chex.Array:
    """Returns the predictions of an `OutputWithPrior`, or the plain array itself."""
    return net_out.preds if isinstance(net_out, OutputWithPrior) else net_out


def parse_to_output_with_prior(net_out: Output) -> OutputWithPrior:
    """Returns an `OutputWithPrior` as it is, and a plain array with a zero prior."""
    if isinstance(net_out, OutputWithPrior):
        return net_out
    return OutputWithPrior(train=net_out, prior=jnp.zeros_like(net_out))


def scale_enn_output(enn: EnnArray, scale: float) -> EnnArray:
    """Returns `enn` with its trainable and prior outputs multiplied by `scale`.

    Numbers follow the original `enn`: for a network whose predictions are not
    `train + prior`, such as a categorical one, `train` is scaled all the same and
    the output becomes a plain `OutputWithPrior`. `extra` is left as it is.
    """

    def scaled_apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        out, state = enn.apply(params, state, inputs, index)
        return _scale(out, scale), state

    return EnnArray(scaled_apply, enn.init, enn.indexer)


def _scale(out: Output, scale: float) -> Any:
    if not isinstance(out, OutputWithPrior):
        return out * scale
    return OutputWithPrior(out.train * scale, out.prior * scale, out.extra)
