"""Networks without network state as thin adapters around the ones with state."""

import chex
import haiku as hk

from enn import base
from enn.networks.base import (
    ApplyArray,
    ApplyNoState,
    EnnArray,
    EnnNoState,
    InitArray,
    InitNoState,
    Output,
)


def wrap_apply_no_state_as_apply(apply: ApplyNoState) -> ApplyArray:
    """Returns `apply` with a state argument that it ignores; the new state is `{}`."""

    def new_apply(
        params: hk.Params,
        state: hk.State,
        inputs: chex.Array,
        index: base.Index,
    ) -> tuple[Output, hk.State]:
        return apply(params, inputs, index), {}

    return new_apply


def wrap_init_no_state_as_init(init: InitNoState) -> InitArray:
    """Returns `init` with an empty state beside the parameters."""

    def new_init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        return init(rng_key, inputs, index), {}

    return new_init


def wrap_enn_no_state_as_enn(enn: EnnNoState) -> EnnArray:
    """Returns a network without state as one with empty state."""
    return EnnArray(
        wrap_apply_no_state_as_apply(enn.apply),
        wrap_init_no_state_as_init(enn.init),
        enn.indexer,
    )


def wrap_enn_as_enn_no_state(
    enn: EnnArray, constant_state: hk.State | None = None
) -> EnnNoState:
    """Returns `enn` without its state, which stays at `constant_state`.

    Args:
      enn: the network to wrap.
      constant_state: the state of every forward pass, such as batch norm statistics
        after training. May be left out only where `enn` has no state.

    Raises:
      ValueError: by `init` and `apply` of the result, where `enn` has state and no
        `constant_state` is given.
    """
    state = {} if constant_state is None else constant_state

    def check_known(state: hk.State) -> None:
        if state and constant_state is None:
            raise ValueError(
                f"The network has state, for the modules {sorted(state)}: give "
                "wrap_enn_as_enn_no_state a constant_state to run it with."
            )

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
        out, new_state = enn.apply(params, state, inputs, index)
        check_known(new_state)
        return out

    def init(rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index) -> hk.Params:
        params, init_state = enn.init(rng_key, inputs, index)
        check_known(init_state)
        return params

    return EnnNoState(apply, init, enn.indexer)
