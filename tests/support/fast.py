"""Testing networks without waiting for them.

What runs is compiled once, without optimisation, which takes a fraction of the time
that one operation after the other does. Large networks are not initialised at all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from enn import base, networks
from enn.networks.base import OutputWithPrior
from enn.networks.utils import parse_net_output

# The inputs of the predictions that the tests list.
X = np.array([[0, 0.2, 0.4], [0.6, 0.8, 1.0]], np.float32)


def key(seed: int) -> jax.Array:
    return jax.random.PRNGKey(seed)


@functools.cache
def compiled(fn: Callable[..., Any]) -> Any:
    """Returns `fn` compiled without optimisation, for a few calls.

    The same function gives the same compiled one. Where the tests run with
    optimisations, so does it.
    """
    unoptimised = jax.config.read("jax_disable_most_optimizations")
    options = {"xla_backend_optimization_level": 0} if unoptimised else {}
    return jax.jit(fn, compiler_options=options)


def compiled_init(enn: base.EpistemicNetwork) -> networks.EnnArray:
    """Returns `enn` with its `init` compiled, for training loops that call it once."""
    return networks.EnnArray(enn.apply, compiled(enn.init), enn.indexer)


def init(
    enn: base.EpistemicNetwork, inputs: Any = X, index: Any = None, seed: int = 0
) -> tuple[Any, Any]:
    """Returns parameters and state."""
    index = enn.indexer(key(3)) if index is None else index
    return compiled(enn.init)(key(seed), inputs, index)


def abstract_variables(enn: base.EpistemicNetwork, inputs: Any) -> tuple[Any, Any]:
    """Returns the shapes and dtypes of parameters and state."""

    def init(key: jax.Array, inputs: Any) -> tuple[Any, Any]:
        return enn.init(key, inputs, enn.indexer(key))

    return jax.eval_shape(init, key(0), inputs)


def shapes(enn: base.EpistemicNetwork, inputs: Any) -> tuple[Any, Any]:
    """Returns parameters and state as nested dicts of shapes."""
    return jax.tree.map(lambda leaf: leaf.shape, abstract_variables(enn, inputs))


def param_shapes(enn: base.EpistemicNetwork, inputs: Any = X) -> Any:
    """Returns the shapes of the parameters, once it is clear that there is no state."""
    params, state = shapes(enn, inputs)
    assert not state
    return params


def random_params(
    enn: base.EpistemicNetwork, inputs: Any, seed: int = 0
) -> tuple[Any, Any]:
    """Returns parameters and state of the right shapes, without running `enn.init`.

    Parameters are uniform in [-0.5, 0.5], state is zero.
    """
    params, state = abstract_variables(enn, inputs)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype), params
    )
    return params, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)


def output(enn: base.EpistemicNetwork, index: Any = None) -> Any:
    """Returns the output at `X` with parameters of key 0, at the index of key 3."""
    index = enn.indexer(key(3)) if index is None else index
    return _from_scratch(enn)(key(0), X, index)


@functools.cache
def _from_scratch(enn: base.EpistemicNetwork) -> Any:
    def run(init_key: Any, inputs: Any, index: Any) -> Any:
        params, state = enn.init(init_key, inputs, index)
        return enn.apply(params, state, inputs, index)[0]

    return compiled(run)


def assert_output_starts(
    out: Any, preds: list[float], prior: list[float] | None = None
) -> None:
    """Asserts the first predictions, and the first values of the prior."""
    _assert_starts(parse_net_output(out), preds)
    assert isinstance(out, OutputWithPrior) == (prior is not None)
    if prior is not None:
        _assert_starts(out.prior, prior)


def _assert_starts(array: Any, start: list[float]) -> None:
    np.testing.assert_allclose(np.ravel(array)[: len(start)], start, atol=1e-5)
