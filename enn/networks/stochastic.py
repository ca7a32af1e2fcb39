"""Haiku functions with randomness of their own as epistemic networks."""

from collections.abc import Callable
from typing import Any

import chex
import haiku as hk

from enn import base
from enn.networks.indexers import PrngIndexer, check_key


def wrap_stochastic_fn_as_enn(
    net_fn: Callable[[Any], Any],
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a function that draws from `hk.next_rng_key`, such as one with dropout.

    The index is the PRNG key of those draws. Initialisation does not read it.

    Args:
      net_fn: function of inputs alone, to be transformed by Haiku.

    Raises:
      ValueError: by `apply`, for an index that is no key; an integer is the seed of
        one, and None will do where nothing is drawn.
    """
    transformed = hk.transform_with_state(net_fn)

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        if not isinstance(index, int | None):
            check_key(index)
        return transformed.apply(params, state, index, inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        return transformed.init(rng_key, inputs)

    return base.EpistemicNetwork(apply, init, PrngIndexer())
