"""Known numbers: the golden cases, and the predictions that the specification lists.

Compiled, which takes a fraction of the time that one operation after the other does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn import base
from enn.networks.base import OutputWithPrior
from enn.networks.utils import parse_net_output
from tests import golden
from tests.networks import cost
from tests.networks.fast import compiled

X = jnp.array([[0, 0.2, 0.4], [0.6, 0.8, 1.0]])


def key(seed: int) -> jax.Array:
    return jax.random.PRNGKey(seed)


def assert_matches_golden_case(name: str, enn: base.EpistemicNetwork) -> None:
    """Asserts that `enn` gives the numbers of the golden case `name`."""
    report = compiled(functools.partial(golden.enn_report, enn))(golden.X5)
    golden.assert_matches(name, report)


def init(
    enn: base.EpistemicNetwork, inputs: Any = X, index: Any = None, seed: int = 0
) -> tuple[Any, Any]:
    """Returns parameters and state."""
    index = enn.indexer(key(3)) if index is None else index
    return compiled(enn.init)(key(seed), inputs, index)


def shapes(enn: base.EpistemicNetwork, inputs: Any = X) -> Any:
    """Returns the shapes of the parameters, once it is clear that there is no state."""
    params, state = cost.abstract_variables(enn, inputs)
    assert not state
    return jax.tree.map(lambda leaf: leaf.shape, params)


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
