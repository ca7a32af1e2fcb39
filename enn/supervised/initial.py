"""How training starts: initial parameters, and a look at what the network gives."""

from collections.abc import Mapping
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.many_indices.members import convolves_on_cpu
from enn.networks.utils import parse_net_output


def initial_variables(
    enn: EnnArray,
    key: chex.PRNGKey,
    inputs: Any,
    index: base.Index,
    params: hk.Params | None,
    state: hk.State | None,
) -> tuple[hk.Params, hk.State]:
    """Returns the parameters and state given, and those of `enn.init` in place of None.

    Raises:
      ValueError: naming the first array that is missing, unexpected or of another shape
        than `enn.init` gives.
    """
    if params is None and state is None:
        return enn.init(key, inputs, index)
    if params is None or state is None:
        expected = enn.init(key, inputs, index)
    else:
        expected = jax.eval_shape(enn.init, key, inputs, index)
    chosen = []
    names = ("init_params", "init_state")
    for name, given, want in zip(names, (params, state), expected, strict=True):
        if given is not None:
            given = _as_dicts(given)
            _checks.same_shapes(name, given, want)
            leaves, structure = jax.tree.leaves(given), jax.tree.structure(want)
            given = structure.unflatten([jnp.asarray(leaf) for leaf in leaves])
        chosen.append(want if given is None else given)
    return chosen[0], chosen[1]


def _as_dicts(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {name: _as_dicts(value) for name, value in tree.items()}


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless `optimizer` is a transformation of optax."""
    if not all(callable(getattr(optimizer, f, None)) for f in ("init", "update")):
        name = getattr(optimizer, "__name__", None)
        got = repr(optimizer) if name is None else f"the function {name}: call it"
        raise TypeError(
            f"optimizer must be made by optax, such as optax.adam(1e-3); got {got}."
        )


def look_at_output(enn: EnnArray, *args: Any) -> bool:
    """Traces the network; returns whether it runs slowly in a loop on the device.

    XLA runs convolutions inside a loop up to 30 times slower on CPU: then steps run
    faster one a dispatch.

    Args:
      enn: the network.
      *args: parameters, state, inputs and an index.

    Raises:
      TypeError: if the network gives a plain tuple.
      ValueError: if it takes a vector of inputs for one example.
    """
    out, _ = jax.eval_shape(enn.apply, *args)
    rows = out.train if isinstance(out, OutputWithPrior) else parse_net_output(out)
    shape = np.shape(args[2]) if hasattr(args[2], "shape") else ()
    if len(shape) == 1 and np.shape(rows)[:1] != shape:
        raise ValueError(
            f"x must be [batch, ...], got shape {list(shape)}, which the network takes "
            "for one example: pass x[:, None] for one feature a row."
        )
    return convolves_on_cpu(enn.apply, *args)
