"""Flax modules as epistemic networks."""

from typing import Any

import chex
import haiku as hk
import jax

from enn import _extras, base
from enn.networks.adapters.features import called_once, with_features
from enn.networks.indexers import PrngIndexer, as_key
from enn.networks.inputs import map_rows


def from_flax(
    module: Any,
    indexer: base.EpistemicIndexer | None = None,
    last_layer: str | None = None,
    **call_kwargs: Any,
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a network from a module of `flax.linen`.

    The collection `params` becomes the parameters, and all other collections, such
    as `batch_stats`, become the state, which every forward pass may update.

    >>> import flax.linen as nn, jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.from_flax(nn.Dense(1))
    >>> x, key = np.ones([3, 2]), jax.random.key(0)
    >>> params, state = enn.init(key, x, key)
    >>> out, _ = enn.apply(params, state, x, key)
    >>> bool((out == nn.Dense(1).apply({"params": params}, x)).all())
    True

    Args:
      module: the module, called with a batch of inputs, or with `(inputs, index)` if
        `indexer` is given.
      indexer: draws the index that the module takes. If left out, the index is a
        PRNG key: the key of the stream `dropout`, from which the keys of other
        streams derive. All rows of a batch share what is drawn, such as dropout masks,
        unless the new state depends on the batch, as with batch normalisation in
        training: Flax then draws for every row, and `nn.Dropout(rate,
        broadcast_dims=(0,))` shares the masks.
      last_layer: name of a layer whose input becomes `extra["features"]` of the output,
        a path such as `block/Dense_1`; see `enn.networks.expose_features`.
      **call_kwargs: constant arguments of the module, such as `train=True`. Networks
        from one module that differ in these share their parameters and state.

    Returns:
      Network with the module's own output.

    Raises:
      ImportError: without Flax, which the extra `flax` installs.
      ValueError: if `module` is not an instance of `flax.linen.Module`; by `apply` if
        no layer is named `last_layer`, or it is called more than once.
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

        def call(inputs: Any) -> tuple[Any, hk.State]:
            return module.apply(
                {"params": params, **state},
                *arguments(inputs, index),
                rngs=rngs,
                mutable=list(state),
                **call_kwargs,
            )

        def run(inputs: Any) -> tuple[Any, hk.State]:
            if last_layer is None:
                out, updates = call(inputs)
                return out, {**state, **updates}
            calls: dict[str, list[Any]] = {}

            def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
                if context.method_name == "__call__":
                    path = "/".join(context.module.path)
                    calls.setdefault(path, []).append(args[0])
                return call(*args, **kwargs)

            with linen.intercept_methods(note):
                out, updates = call(inputs)
            features = called_once(calls.pop(last_layer, []), last_layer, calls)
            return with_features(out, features), {**state, **updates}

        return map_rows(run, inputs) if rngs else run(inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        variables = module.init(rng_key, *arguments(inputs, index), **call_kwargs)
        state = {name: value for name, value in variables.items() if name != "params"}
        return variables.get("params", {}), state

    return base.EpistemicNetwork(apply, init, indexer or PrngIndexer())
