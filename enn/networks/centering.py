"""Networks whose inputs are standardised with training statistics."""

import chex
import haiku as hk
import jax.numpy as jnp

from enn import base
from enn.networks.base import EnnArray, EnnNoState, Output
from enn.networks.no_state import wrap_enn_no_state_as_enn


def make_centered_enn(enn: EnnArray, x_train: chex.Array) -> EnnArray:
    """Returns `enn` applied to (x - mean) / (std + 1e-9) of `x_train`.

    Numbers follow the original `enn`: a feature that is constant in `x_train` is
    divided by 1e-9, so that a test value which differs becomes huge.

    Args:
      enn: the network to wrap.
      x_train: training inputs, `[num_data, ...]`; statistics are per feature, over
        the first axis.

    Raises:
      ValueError: if `x_train` has fewer than two axes; by `apply` for inputs of other
        features.
    """
    if jnp.ndim(x_train) < 2:
        raise ValueError(
            f"x_train must have shape [num_data, ...], got {list(jnp.shape(x_train))}."
        )
    mean = jnp.mean(x_train, axis=0)
    std = jnp.std(x_train, axis=0)

    def centered_apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        shape = jnp.shape(inputs)
        if shape[-mean.ndim :] != mean.shape:
            raise ValueError(
                "inputs must have the features of x_train, of shape "
                f"{list(mean.shape)}, got shape {list(shape)}."
            )
        center, scale = (jnp.broadcast_to(x, shape) for x in (mean, std + 1e-9))
        return enn.apply(params, state, (inputs - center) / scale, index)

    return EnnArray(centered_apply, enn.init, enn.indexer)


def make_centered_enn_no_state(enn: EnnNoState, x_train: chex.Array) -> EnnNoState:
    """Returns `enn` applied to standardised inputs; see `make_centered_enn`."""
    centered = make_centered_enn(wrap_enn_no_state_as_enn(enn), x_train)

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
        return centered.apply(params, {}, inputs, index)[0]

    return EnnNoState(apply, enn.init, enn.indexer)
