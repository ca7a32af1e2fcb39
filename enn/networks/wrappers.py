"""Epistemic networks from Haiku modules, functions and transforms."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import haiku as hk

from enn import base
from enn.networks.base import EnnArray, EnnNoState, EpistemicModule, Output
from enn.networks.indexers import PrngIndexer
from enn.networks.init_once import init_once
from enn.networks.no_state import wrap_enn_no_state_as_enn


def epistemic_network_from_module(
    enn_ctor: Callable[[], EpistemicModule], indexer: base.EpistemicIndexer
) -> EnnArray:
    """Returns the network of a Haiku module that takes inputs and an index.

    Args:
      enn_ctor: makes the module; called inside a Haiku transform.
      indexer: draws the index that the module takes.
    """

    def forward(inputs: chex.Array, index: base.Index) -> Output:
        return enn_ctor()(inputs, index)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    init = functools.partial(init_once, transformed.init)
    return EnnArray(transformed.apply, init, indexer)


def wrap_net_fn_as_enn(
    net_fn: Callable[[Any], Any],
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a function of inputs alone, to be transformed, as a network.

    The index is a PRNG key that nothing uses.
    """
    transformed = hk.without_apply_rng(hk.transform_with_state(net_fn))

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        del index
        return transformed.apply(params, state, inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        return transformed.init(rng_key, inputs)

    return base.EpistemicNetwork(apply, init, PrngIndexer())


def wrap_transformed_as_enn_no_state(transformed: hk.Transformed) -> EnnNoState:
    """Returns a transformed function of inputs alone as a network without state.

    Args:
      transformed: a pair without apply-rng, from
        `hk.without_apply_rng(hk.transform(...))`.

    Raises:
      ValueError: if `transformed` still takes a random key in apply.
    """
    if "rng" in list(inspect.signature(transformed.apply).parameters)[1:2]:
        raise ValueError(
            "The transformed function still takes a random key in apply: wrap it "
            "with hk.without_apply_rng first."
        )

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
        del index
        return transformed.apply(params, inputs)

    def init(rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index) -> hk.Params:
        del index
        return transformed.init(rng_key, inputs)

    return EnnNoState(apply, init, PrngIndexer())


def wrap_transformed_as_enn(transformed: hk.Transformed) -> EnnArray:
    """Returns a transformed function of inputs alone as a network with empty state.

    See `wrap_transformed_as_enn_no_state` for `transformed`.
    """
    return wrap_enn_no_state_as_enn(wrap_transformed_as_enn_no_state(transformed))
