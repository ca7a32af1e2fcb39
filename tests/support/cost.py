"""Counting the floating point operations of functions, before XLA optimises them."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from enn import base
from enn.networks.utils import parse_net_output
from tests.support.fast import abstract_variables


def flops(fn: Callable[..., Any], *args: Any) -> float:
    """Returns what XLA counts for `fn` at `args`, arrays or their shapes.

    That is what is written, before XLA takes out what is computed twice or not used.
    """
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def flops_at_indices(
    enn: base.EpistemicNetwork, inputs: Any, num_indices: int | None = 100
) -> float:
    """Returns the operations of one batch's predictions at `num_indices` indices.

    At one index without an axis of indices for None. Nothing is computed.
    """
    key = jax.random.PRNGKey(0)
    params, state = abstract_variables(enn, inputs)

    def predict(params: Any, state: Any, inputs: Any, index: base.Index) -> jax.Array:
        return parse_net_output(enn.apply(params, state, inputs, index)[0])  # pyrefly: ignore[bad-return]

    if num_indices is None:
        index = jax.eval_shape(enn.indexer, key)
        return flops(predict, params, state, inputs, index)

    def draw(key: jax.Array) -> base.Index:
        return jax.vmap(enn.indexer)(jax.random.split(key, num_indices))

    predict_all = jax.vmap(predict, in_axes=(None, None, None, 0))
    return flops(predict_all, params, state, inputs, jax.eval_shape(draw, key))


def mlp_flops(batch: int, *sizes: int) -> int:
    """Returns the multiplications and additions of an MLP's matrix products."""
    return 2 * batch * sum(a * b for a, b in itertools.pairwise(sizes))


def convolutions(fn: Callable[..., Any], *args: Any) -> list[int]:
    """Returns the number of groups of every convolution of `fn`, of each call of it."""

    def groups(jaxpr: core.Jaxpr) -> Iterator[int]:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                names = ("feature_group_count", "batch_group_count")
                yield max(equation.params[name] for name in names)
            for inner in jax.tree.leaves(list(equation.params.values())):
                if isinstance(inner, core.ClosedJaxpr):
                    yield from groups(inner.jaxpr)

    return list(groups(jax.make_jaxpr(fn)(*args).jaxpr))
