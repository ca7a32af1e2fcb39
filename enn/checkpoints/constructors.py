"""Networks saved whole: the name of what builds one, and its arguments, as JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from enn import networks
from enn.networks import epinet
from enn.networks.base import EnnArray
from enn.supervised.base import check_network

Constructor = TypeVar("Constructor", bound=Callable[..., Any])

_KEYS = {"constructor", "arguments"}
_registered: dict[str, Callable[..., Any]] = {}


def register_constructor(constructor: Constructor) -> Constructor:
    """Makes a function or class known by its name, to saves that name it.

    Also a decorator. `load_enn` calls only what was registered before, and the
    functions and classes of `enn.networks` and `enn.networks.epinet`.

    >>> from enn import checkpoints, networks
    >>> from enn.checkpoints.constructors import build
    >>> @checkpoints.register_constructor
    ... def make_small_ensemble(num_outputs):
    ...     return networks.MLPEnsembleMatchedPrior([8, num_outputs], num_ensemble=4)
    >>> config = {"constructor": "make_small_ensemble", "arguments": {"num_outputs": 2}}
    >>> build(config).indexer.num_ensemble
    4

    Args:
      constructor: takes arguments that JSON has. A later one takes the place of an
        earlier one of the same name.

    Raises:
      TypeError: unless it is a function or a class with a name.
      ValueError: if `enn.networks` has its name.
    """
    name = getattr(constructor, "__name__", None)
    if not callable(constructor) or name in (None, "<lambda>"):
        raise TypeError(f"A function or class with a name is needed: {constructor!r}.")
    if _of_library(name) is not None:
        raise ValueError(f"{name!r} is a name of enn.networks: choose another one.")
    _registered[name] = constructor
    return constructor


def build(config: Mapping[str, Any]) -> EnnArray:
    """Returns the network that a config describes.

    Args:
      config: `{"constructor": name, "arguments": {...}}`, the name as in
        `register_constructor`. An argument may be such a dict itself, and is built
        first: the `enn` of `make_centered_enn`, an indexer.

    Raises:
      TypeError: if it builds something else than a network with state.
      ValueError: if it is not such a dict, the name is unknown, or the constructor does
        not take the arguments.
    """
    enn = _build(config)
    check_network(enn)
    return enn


def as_json(config: Mapping[str, Any]) -> Any:
    """Returns a config as JSON gives it back; arrays are marked as such.

    Raises:
      TypeError: for an argument that JSON does not have.
    """

    def encode(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray | jax.Array):
            array = np.asarray(value)
            return {"array": array.tolist(), "dtype": array.dtype.name}
        raise TypeError(
            "config must hold numbers, strings, arrays, lists and dicts, got a "
            f"{type(value).__name__}: register a function that makes it, see "
            "enn.checkpoints.register_constructor."
        )

    return json.loads(json.dumps(config, default=encode))


def _build(config: Any) -> Any:
    name, arguments = None, None
    if isinstance(config, Mapping) and set(config) == _KEYS:
        name, arguments = config["constructor"], config["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError(
            "config must be {'constructor': name, 'arguments': {...}}, got "
            f"{config!r:.200}."
        )
    constructor = _registered.get(name) or _of_library(name)
    if constructor is None:
        raise ValueError(
            f"{name!r} is neither of enn.networks nor registered: call "
            "enn.checkpoints.register_constructor with it first. Registered are "
            f"{sorted(_registered)}."
        )
    arguments = {key: _decode(value) for key, value in arguments.items()}
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take {arguments!r:.200}: {error}") from error


def _decode(value: Any) -> Any:
    keys = set(value) if isinstance(value, Mapping) else None
    if keys == {"array", "dtype"}:
        return np.asarray(value["array"], jnp.dtype(value["dtype"]))
    return _build(value) if keys == _KEYS else value


def _of_library(name: Any) -> Callable[..., Any] | None:
    """Returns a public function or class of the networks, by the name alone."""
    for package in (networks, epinet):
        value = getattr(package, name) if name in package.__all__ else None
        if callable(value):
            return value
    return None
