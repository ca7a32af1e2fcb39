"""Prior functions of an index, made from functions of the input alone."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks import members
from enn.networks.base import PriorFn


def combine_functions_choice_via_index(
    prior_fns: Sequence[Callable[[chex.Array], chex.Array]],
) -> PriorFn:
    """Returns `(x, z) -> prior_fns[z](x)` for an integer index z.

    Under `jax.vmap` over z every function is evaluated once, not once for every
    index.

    Args:
      prior_fns: functions `[batch, ...] -> [batch, num_outputs]` of equal outputs.

    Raises:
      ValueError: if `prior_fns` is empty; by the result for an index out of range,
        see `enn.networks.members`.
    """
    fns = _non_empty(prior_fns)

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        return members.apply_choice(fns, inputs, index)

    return prior_fn


def combine_functions_linear_in_index(
    prior_fns: Sequence[Callable[[chex.Array], chex.Array]],
) -> PriorFn:
    """Returns `(x, z) -> Σ_n z_n prior_fns[n](x)` for an index `[len(prior_fns)]`.

    The functions do not depend on z: under `jax.vmap` over z each is evaluated once.

    Args:
      prior_fns: functions `[batch, ...] -> [batch, num_outputs]` of equal outputs.

    Raises:
      ValueError: if `prior_fns` is empty; by the result for an index of another
        shape.
    """
    fns = _non_empty(prior_fns)

    @jax.jit
    def combine(inputs: chex.Array, index: base.Index) -> chex.Array:
        values = jnp.stack([fn(inputs) for fn in fns], axis=-1)
        return values @ jnp.asarray(index)

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        _checks.shape("index", index, (len(fns),), f"[{len(fns)}]")
        return combine(inputs, index)

    return prior_fn


def _non_empty(
    prior_fns: Sequence[Callable[[chex.Array], chex.Array]],
) -> tuple[Callable[[chex.Array], chex.Array], ...]:
    if not prior_fns:
        raise ValueError("prior_fns must hold at least one function.")
    return tuple(prior_fns)
