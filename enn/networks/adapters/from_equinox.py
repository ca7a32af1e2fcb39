"""Equinox modules as epistemic networks."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _extras, base
from enn.networks.adapters.features import Spy, called_once, with_features
from enn.networks.indexers import PrngIndexer, as_key


def from_equinox(
    make_module: Callable[[chex.PRNGKey], Any],
    indexer: base.EpistemicIndexer | None = None,
    axis_name: str = "batch",
    last_layer: str | None = None,
) -> "EquinoxEnn":
    """Returns a network from a module of Equinox.

    Floating-point arrays of the module become the parameters. Its other arrays
    become the state, together with an `eqx.nn.State`, which every forward pass may
    update. Both are dictionaries `{"Net/layers/0": {"weight": ...}}` by place in the
    module; the method `module(params, state)` of the result puts them back.

    >>> import equinox as eqx, jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.from_equinox(lambda key: eqx.nn.Linear(2, 1, key=key))
    >>> x, key = np.ones([3, 2]), jax.random.key(0)
    >>> params, state = enn.init(key, x, key)
    >>> out, _ = enn.apply(params, state, x, key)
    >>> module, _ = enn.module(params, state)
    >>> np.allclose(out, jax.vmap(module)(x))
    True

    Args:
      make_module: makes the module from a PRNG key: `lambda key: Net(key=key)`; with
        state, `lambda key: eqx.nn.make_with_state(Net)(key=key)`. To start from a
        trained module, return it: `lambda key: module`. The module is called for a
        single example, under `jax.vmap` over the batch, with `input`, `index` if
        `indexer` is given, and its `eqx.nn.State` if it has one, which it then
        returns after its output. Networks made in training and in inference mode
        share their parameters and state.
      indexer: draws the index that the module takes. If left out, the index is a
        PRNG key, given as the argument `key` to a module that has one. It is the
        same for all examples: so are dropout masks.
      axis_name: name of the batch axis, for layers such as `eqx.nn.BatchNorm`.
      last_layer: name of a layer whose input becomes `extra["features"]` of the output,
        a path such as `layers/1`; see `enn.networks.expose_features`.

    Returns:
      Network with the module's own output, stacked over the batch.

    Raises:
      ImportError: without Equinox, which the extra `equinox` installs.
      ValueError: if `make_module` does not make an `eqx.Module`; by `apply` if no layer
        is named `last_layer`, or it is called more than once.
    """
    return EquinoxEnn(make_module, indexer, axis_name, last_layer)


class EquinoxEnn(base.EpistemicNetwork[Any, Any]):
    """A network made by `from_equinox`."""

    def __init__(
        self,
        make_module: Callable[[chex.PRNGKey], Any],
        indexer: base.EpistemicIndexer | None,
        axis_name: str,
        last_layer: str | None = None,
    ):
        eqx = _extras.require("equinox", "equinox")
        if isinstance(make_module, eqx.Module):
            raise ValueError(
                "make_module must be a function of a PRNG key; give a module that "
                "exists already as `lambda key: module`."
            )

        def make(key: chex.PRNGKey) -> tuple[Any, Any]:
            made = make_module(key)
            module, module_state = made if isinstance(made, tuple) else (made, None)
            if not isinstance(module, eqx.Module):
                raise ValueError(
                    f"make_module must make an eqx.Module, got {module!r}."
                )
            return module, module_state

        self._make = make
        self._with_index = indexer is not None
        self._axis_name = axis_name
        self._last_layer = last_layer
        template = eqx.filter_eval_shape(make, jax.random.key(0))
        call = inspect.signature(type(template[0]).__call__)
        self._with_key = indexer is None and "key" in call.parameters
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(template)
        root = type(template[0]).__name__
        self._slots = [
            _place(root, path, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
            for path, leaf in leaves
        ]
        super().__init__(self._apply, self._init, indexer or PrngIndexer())

    def module(self, params: hk.Params, state: hk.State) -> tuple[Any, Any]:
        """Returns the module with these arrays, and its `eqx.nn.State` or None."""
        leaves = [
            (params if slot.is_param else state)[slot.module][slot.name]
            if isinstance(slot, _Place)
            else slot
            for slot in self._slots
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def _split(self, module_and_state: tuple[Any, Any]) -> tuple[Any, Any]:
        params: dict[str, dict[str, Any]] = {}
        state: dict[str, dict[str, Any]] = {}
        leaves = jax.tree.leaves(module_and_state)
        for slot, leaf in zip(self._slots, leaves, strict=True):
            if isinstance(slot, _Place):
                group = params if slot.is_param else state
                group.setdefault(slot.module, {})[slot.name] = leaf
        return params, state

    def _apply(
        self, params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        module, module_state = self.module(params, state)
        index_args = (index,) if self._with_index else ()
        key_args = {"key": as_key(index)} if self._with_key else {}

        def call(example: Any, module_state: Any) -> tuple[Any, Any]:
            state_args = () if module_state is None else (module_state,)
            spied, spy, names = _spied(module, self._last_layer)
            out = spied(example, *index_args, *state_args, **key_args)
            out, module_state = (out, None) if module_state is None else out
            if spy is not None:
                features = called_once(spy.seen, str(self._last_layer), names)
                out = with_features(out, features)
            return out, module_state

        out, module_state = jax.vmap(
            call, in_axes=(0, None), out_axes=(0, None), axis_name=self._axis_name
        )(inputs, module_state)
        _, new_state = self._split((module, module_state))
        return out, {**state, **new_state}

    def _init(
        self, rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del inputs, index
        arrays = self._split(self._make(rng_key))
        return jax.tree.map(lambda array: jnp.array(array, array.dtype), arrays)


def _spied(module: Any, last_layer: str | None) -> tuple[Any, Spy | None, list[str]]:
    """Returns `module` with a spy in place of `last_layer`, and names of its layers."""
    if last_layer is None:
        return module, None, []
    eqx = _extras.require("equinox", "equinox")
    layers = dict(_layers(eqx, module, ""))
    if last_layer not in layers:
        called_once([], last_layer, layers)
    spy = Spy(layers[last_layer])
    spied = eqx.tree_at(
        lambda tree: dict(_layers(eqx, tree, ""))[last_layer], module, spy
    )
    return spied, spy, list(layers)


def _layers(eqx: Any, module: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields all modules inside `module`, with their places."""
    children, _ = jax.tree_util.tree_flatten_with_path(
        module, is_leaf=lambda x: isinstance(x, eqx.Module) and x is not module
    )
    for path, child in children:
        if isinstance(child, eqx.Module):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            yield prefix + place, child
            yield from _layers(eqx, child, f"{prefix}{place}/")


class _Place(NamedTuple):
    """Where an array of the module is among the parameters or in the state."""

    is_param: bool
    module: str
    name: str


def _place(root: str, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> _Place:
    in_state = path[0].idx == 1
    place = jax.tree_util.keystr(path[1:], simple=True, separator="/")
    module, _, name = f"{root}{'/state' * in_state}/{place}".rpartition("/")
    is_param = not in_state and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return _Place(is_param, module, name)
