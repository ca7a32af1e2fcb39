"""Flax NNX modules as epistemic networks."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _extras, base
from enn.networks.adapters.features import Spy, called_once, with_features
from enn.networks.indexers import PrngIndexer, as_key
from enn.networks.inputs import map_rows


def from_nnx(
    make_module: Callable[[Any], Any],
    indexer: base.EpistemicIndexer | None = None,
    last_layer: str | None = None,
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a network from a module of `flax.nnx`.

    Variables of type `nnx.Param` become the parameters. All others, such as
    `nnx.BatchStat`, become the state, which every forward pass may update; but not
    random streams, which get their keys from the index, nor `nnx.Intermediate`.
    Parameters and state are nested dictionaries of arrays:
    `nnx.update(module, params, state)` writes them into a module.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from enn import networks
    >>> enn = networks.from_nnx(lambda rngs: nnx.Linear(2, 1, rngs=rngs))
    >>> x, key = np.ones([3, 2]), jax.random.key(0)
    >>> params, state = enn.init(key, x, key)
    >>> out, _ = enn.apply(params, state, x, key)
    >>> np.allclose(out, x @ params["kernel"] + params["bias"][None])
    True

    Args:
      make_module: makes the module from an `nnx.Rngs`: its class, or
        `lambda rngs: Net(8, rngs=rngs)`. To start from a trained module, return it:
        `lambda rngs: module`. The module is called with a batch of inputs, or
        with `(inputs, index)` if `indexer` is given. Networks made in training and in
        evaluation mode share their parameters and state.
      indexer: draws the index that the module takes. If left out, the index is a
        PRNG key, from which every random stream of the module gets a key of its own.
        All rows of a batch share what is drawn, such as dropout masks, unless the new
        state depends on the batch, as with batch normalisation in training: NNX then
        draws for every row, and `nnx.Dropout(rate, broadcast_dims=(0,), rngs=rngs)`
        shares the masks.
      last_layer: name of a layer whose input becomes `extra["features"]` of the output,
        a path such as `layers/1`; see `enn.networks.expose_features`.

    Returns:
      Network with the module's own output.

    Raises:
      ImportError: without Flax, which the extra `flax` installs.
      ValueError: if `make_module` does not make an `nnx.Module`; for a module with
        random streams whose index is not a PRNG key; by `apply` if no layer is named
        `last_layer`, or it is called more than once.
    """
    nnx = _extras.require("flax.nnx", "flax")
    kinds = (nnx.Param, nnx.RngKey, nnx.RngCount, nnx.Intermediate, ...)
    if isinstance(make_module, nnx.Module):
        raise ValueError(
            "make_module must be a function of an nnx.Rngs; give a module that exists "
            "already as `lambda rngs: module`."
        )

    def make(key: chex.PRNGKey) -> Any:
        module = make_module(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ValueError(f"make_module must make an nnx.Module, got {module!r}.")
        return module

    # `nnx.split` gives the graph, then the variables of each of `kinds`; `...` takes
    # the rest, which is the state. Streams are made afresh from the index at every
    # call; intermediates stay as in the template, and are not part of the network.
    template = nnx.eval_shape(lambda: make(jax.random.key(0)))
    graph, params_spec, keys_spec, counts_spec, *unused, state_spec = nnx.split(
        template, *kinds
    )
    if keys_spec and not isinstance(indexer, PrngIndexer | None):
        raise ValueError(
            "The module has random streams, so its index must be a PRNG key, not one "
            f"drawn by {indexer}."
        )

    def split(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        _, params, *_, state = nnx.split(module, *kinds)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        def run(inputs: Any) -> tuple[Any, hk.State]:
            keys, counts = _fresh_streams(keys_spec, counts_spec, index)
            module = nnx.merge(
                graph,
                _fill(params_spec, params),
                keys,
                counts,
                *unused,
                _fill(state_spec, state),
            )
            args = (inputs,) if indexer is None else (inputs, index)
            if last_layer is None:
                out = module(*args)
            else:
                out = _call_with_features(nnx, module, last_layer, args)
            return out, {**state, **split(module)[1]}

        return map_rows(run, inputs) if keys_spec else run(inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del inputs, index
        return jax.tree.map(jnp.array, split(make(rng_key)))

    return base.EpistemicNetwork(apply, init, indexer or PrngIndexer())


def _call_with_features(
    nnx: Any, module: Any, last_layer: str, args: tuple[Any, ...]
) -> Any:
    """Returns the output of `module`, with what its `last_layer` saw."""
    paths = {"/".join(map(str, path)): path for path, _ in nnx.iter_modules(module)}
    if last_layer not in paths:
        called_once([], last_layer, paths)
    *place, name = paths[last_layer]
    parent = module
    for part in place:
        parent = parent[part] if isinstance(part, int) else getattr(parent, part)
    spy = Spy(parent[name] if isinstance(name, int) else getattr(parent, name))
    put = parent.__setitem__ if isinstance(name, int) else parent.__setattr__
    put(name, spy)
    try:
        out = module(*args)
    finally:
        put(name, spy.layer)
    return with_features(out, called_once(spy.seen, last_layer, paths))


def _fill(spec: Any, values: Mapping[str, Any]) -> Any:
    own = {name: values[name] for name in spec}
    return jax.tree.unflatten(jax.tree.structure(spec), jax.tree.leaves(own))


def _fresh_streams(keys_spec: Any, counts_spec: Any, index: base.Index) -> Any:
    """Returns a key for every random stream, and counts that start at zero."""
    specs, structure = jax.tree.flatten(keys_spec)
    index = as_key(index) if specs else index
    keys = []
    for i, spec in enumerate(specs):
        key = jax.random.fold_in(index, i)
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        keys.append(jax.random.split(key, spec.shape))
    counts = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), counts_spec)
    return jax.tree.unflatten(structure, keys), counts
