"""Flax modules as epistemic networks."""

from typing import Any

import chex
import haiku as hk
import jax

from enn import _extras, base
from enn.networks.indexers import PrngIndexer, as_key
from enn.networks.inputs import map_rows


def from_flax(
    module: Any,
    indexer: base.EpistemicIndexer | None = None,
    **call_kwargs: Any,
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a network from a module of `flax.linen`.

    The collection `params` becomes the parameters, and all other collections, such
    as `batch_stats`, become the state, which every forward pass may update.

    Args:
      module: the module, called with a batch of inputs, or with `(inputs, index)` if
        `indexer` is given.
      indexer: draws the index that the module takes. If left out, the index is a
        PRNG key: the key of the stream `dropout`, from which the keys of other
        streams derive. All rows of a batch share what is drawn, such as dropout masks,
        unless the new state depends on the batch, as with batch normalisation in
        training: Flax then draws for every row, and `nn.Dropout(rate,
        broadcast_dims=(0,))` shares the masks.
      **call_kwargs: constant arguments of the module, such as `train=True`. Networks
        from one module that differ in these share their parameters and state.

    Returns:
      Network with the module's own output.

    Raises:
      ImportError: without Flax, which the extra `flax` installs.
      ValueError: if `module` is not an instance of `flax.linen.Module`.
    """
    linen = _extras.require("flax.linen", "flax")
    if not isinstance(module, linen.Module):
        raise ValueError(
            f"module must be an instance of flax.linen.Module, got {module!r}."
        )

    def arguments(inputs: Any, index: base.Index) -> tuple[Any, ...]:
        return (inputs,) if indexer is None else (inputs, index)

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        rngs = {}
        if indexer is None:
            key = as_key(index)
            # Flax draws from `params` for streams that have no key.
            rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}

        def run(inputs: Any) -> tuple[Any, hk.State]:
            out, updates = module.apply(
                {"params": params, **state},
                *arguments(inputs, index),
                rngs=rngs,
                mutable=list(state),
                **call_kwargs,
            )
            return out, {**state, **updates}

        return map_rows(run, inputs) if rngs else run(inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        variables = module.init(rng_key, *arguments(inputs, index), **call_kwargs)
        state = {name: value for name, value in variables.items() if name != "params"}
        return variables.get("params", {}), state

    return base.EpistemicNetwork(apply, init, indexer or PrngIndexer())
