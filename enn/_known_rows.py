"""What networks compute from their inputs alone, known for rows of training data.

A prior function or a frozen base network gives the same for a row of the data at every
training step. Data in memory have `enn.supervised` compute it once for each row and say
so here; networks ask before they compute it:

>>> import jax.numpy as jnp
>>> from enn._known_rows import known_at, look_up
>>> def double(inputs):
...     return 2 * inputs
>>> def network(inputs):
...     known = look_up(double, inputs)
...     return double(inputs) if known is None else known
>>> inputs = jnp.ones(2)
>>> with known_at(inputs, {double: jnp.zeros(2)}):
...     network(inputs), network(inputs + 3)
(Array([0., 0.], dtype=float32), Array([8., 8.], dtype=float32))

Values are known for one object, the inputs of a batch, and not for equal ones: whatever
else a loss gives to the network, such as inputs with noise, is computed as ever.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

RowFn = Callable[[Any], Any]
"""Inputs `[batch, ...]` -> a tree of arrays `[batch, ...]`, each row from its own.

None if rows turn out to depend on others, as in batch normalisation in training.
"""


@dataclasses.dataclass
class _Scope:
    inputs: Any
    values: Mapping[RowFn, Any]
    asked: list[RowFn] = dataclasses.field(default_factory=list)


_scope: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar(
    "known_rows", default=None
)


def look_up(fn: RowFn, inputs: Any) -> Any:
    """Returns `fn(inputs)` if it is known, else None.

    Args:
      fn: a fixed function, whose outputs of a row depend on that row alone. The same
        one at every call.
      inputs: the inputs of a network.
    """
    scope = _scope.get()
    if scope is None or scope.inputs is not inputs:
        return None
    if fn not in scope.asked:
        scope.asked.append(fn)
    return scope.values.get(fn)


@contextlib.contextmanager
def known_at(inputs: Any, values: Mapping[RowFn, Any]) -> Iterator[list[RowFn]]:
    """Makes values known at `inputs`; gives the functions that are asked for there.

    Args:
      inputs: the inputs of a batch.
      values: the outputs of functions at these inputs; may be empty.
    """
    scope = _Scope(inputs, values)
    token = _scope.set(scope)
    try:
        yield scope.asked
    finally:
        _scope.reset(token)
