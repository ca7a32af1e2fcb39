"""Evaluating a function at many epistemic indices in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

from enn import _checks, _sharding, base

_MAX_BYTES = 256 * 2**20
_CACHE_BYTES = 16 * 2**20
"""On CPU, blocks whose intermediate values stay in cache are several times faster."""


def map_indices(
    fn: Callable[[base.Index], Any], indices: base.Index, batch_z: int | None = None
) -> Any:
    """Returns `fn` at every index, outputs stacked on a new leading axis.

    As `jax.vmap(fn)(indices)`, but `batch_z` indices at a time. What `fn` computes
    without its index is computed once: inside `jax.jit`, XLA moves it out of the loop.

    Args:
      fn: function of one index.
      indices: indices stacked on the first axis of every leaf.
      batch_z: how many indices at once. By default so many that all values which
        depend on the index fit in 256 MiB, or in cache on a CPU. The result does not
        depend on it.

    Raises:
      ValueError: if `batch_z` is no integer >= 1.
    """
    num_indices = len(jax.tree.leaves(indices)[0])
    num_devices = _sharding.num_index_devices()
    per_device = -(-num_indices // num_devices)
    if batch_z is None:
        first = jax.tree.map(lambda leaf: leaf[0], indices)
        batch_z = _default_batch_z(fn, first, per_device)
    if _checks.positive_int("batch_z", batch_z) >= per_device:
        return jax.vmap(fn)(_sharding.over_index(indices))
    if num_devices == 1 or num_indices % num_devices:
        return jax.lax.map(fn, indices, batch_size=batch_z)
    parts = _sharding.over_index(_reshape(indices, (num_devices, per_device), 1))
    outputs = jax.vmap(lambda part: jax.lax.map(fn, part, batch_size=batch_z))(parts)
    return _reshape(outputs, (num_indices,), 2)


def _reshape(tree: Any, shape: tuple[int, ...], rank: int) -> Any:
    """Reshapes the first `rank` axes of every leaf to `shape`."""
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[rank:]), tree)


def _default_batch_z(
    fn: Callable[[base.Index], Any], index: base.Index, num_indices: int
) -> int:
    budget = _CACHE_BYTES if jax.default_backend() == "cpu" else _MAX_BYTES
    largest = max(1, budget // max(1, _num_bytes(fn, index)))
    # A divisor leaves no remainder, which would be compiled apart.
    divisors = [d for d in range(1, num_indices + 1) if num_indices % d == 0]
    fitting = [d for d in divisors if d <= largest]
    return fitting[-1] if 2 * fitting[-1] > largest else min(largest, num_indices)


def _num_bytes(fn: Callable[[base.Index], Any], index: base.Index) -> int:
    """Size of all values in a call of `fn` that depend on the index."""
    jaxpr = jax.make_jaxpr(fn)(index).jaxpr
    dependent = set(jaxpr.invars)
    num_bytes = 0
    for equation in jaxpr.eqns:
        variables = {v for v in equation.invars if isinstance(v, core.Var)}
        if variables & dependent:
            dependent.update(equation.outvars)
            num_bytes += sum(
                v.aval.size * np.dtype(v.aval.dtype).itemsize
                for v in equation.outvars
                if not jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.extended)
            )
    return num_bytes
