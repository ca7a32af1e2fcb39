"""Testing large networks without initialising them at full cost."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from enn import base, networks
from enn.networks.utils import parse_net_output
from tests.networks import cost


@functools.cache
def compiled(fn: Callable[..., Any]) -> Any:
    """Returns `fn` compiled without optimisation, for a few calls.

    The same function gives the same compiled one.
    """
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def compiled_init(enn: base.EpistemicNetwork) -> networks.EnnArray:
    """Returns `enn` with its `init` compiled, for training loops that call it once."""
    return networks.EnnArray(enn.apply, compiled(enn.init), enn.indexer)


def shapes(enn: base.EpistemicNetwork, inputs: Any) -> tuple[Any, Any]:
    """Returns parameters and state as nested dicts of shapes."""
    return jax.tree.map(lambda leaf: leaf.shape, cost.abstract_variables(enn, inputs))


def random_params(
    enn: base.EpistemicNetwork, inputs: Any, seed: int = 0
) -> tuple[Any, Any]:
    """Returns parameters and state of the right shapes, without running `enn.init`.

    Parameters are uniform in [-0.5, 0.5], state is zero.
    """
    params, state = cost.abstract_variables(enn, inputs)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype), params
    )
    return params, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)


def flops_at_indices(
    enn: base.EpistemicNetwork, inputs: Any, num_indices: int | None
) -> float:
    """Returns the operations of predictions at many indices, or at one for None.

    Only compiles: neither parameters nor predictions are computed.
    """
    params, state = cost.abstract_variables(enn, inputs)
    index = enn.indexer(jax.random.PRNGKey(0))

    def predict(params: Any, state: Any, inputs: Any, index: Any) -> jax.Array:
        return parse_net_output(enn.apply(params, state, inputs, index)[0])

    if num_indices is None:
        return cost.flops(predict, params, state, inputs, index)
    indices = jax.tree.map(lambda z: np.stack([z] * num_indices), index)
    predict_all = jax.vmap(predict, in_axes=(None, None, None, 0))
    return cost.flops(predict_all, params, state, inputs, indices)
