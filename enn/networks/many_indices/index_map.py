"""Evaluating a function at many epistemic indices in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _sharding, base
from enn.networks.many_indices.hoisting import after_shared_work, inputs_of, partition

_MAX_BYTES = 256 * 2**20
_CACHE_BYTES = 32 * 2**20
"""On CPU, blocks whose intermediate values stay in cache are several times faster.

What is shared by all blocks, such as weights, counts too, up to half of this.
"""


def map_indices(
    fn: Callable[[base.Index], Any], indices: base.Index, batch_z: int | None = None
) -> Any:
    """Returns `fn` at every index, outputs stacked on a new leading axis.

    As `jax.vmap(fn)(indices)`, but `batch_z` indices at a time. What `fn` computes
    without its index is computed once, before the loop over them.

    Args:
      fn: function of one index.
      indices: indices stacked on the first axis of every leaf.
      batch_z: how many indices at once. By default so many that all values which
        depend on the index fit in 256 MiB, or in cache on a CPU. The result does not
        depend on it.

    Raises:
      ValueError: if `batch_z` is not an integer >= 1.
    """
    num_indices = len(jax.tree.leaves(indices)[0])
    num_devices = _sharding.num_index_devices()
    per_device = -(-num_indices // num_devices)
    if batch_z is None:
        batch_z = _default_batch_z(fn, _rows(indices, 0), per_device)
    if _checks.positive_int("batch_z", batch_z) >= per_device:
        return jax.vmap(fn)(_sharding.over_index(indices))
    if num_devices == 1 or num_indices % num_devices:
        return _map_blocks(fn, indices, batch_z)
    parts = _sharding.over_index(_reshape(indices, (num_devices, per_device), 1))
    outputs = jax.vmap(lambda part: _map_blocks(fn, part, batch_z))(parts)
    return _reshape(outputs, (num_indices,), 2)


def _map_blocks(
    fn: Callable[[base.Index], Any], indices: base.Index, batch_z: int
) -> Any:
    """As `jax.vmap(fn)(indices)`, in blocks of `batch_z` and a smaller last one."""
    num_blocks, rest = divmod(len(jax.tree.leaves(indices)[0]), batch_z)
    end = num_blocks * batch_z
    blocks = _reshape(_rows(indices, slice(end)), (num_blocks, batch_z), 1)
    # As jax.lax.map(fn, indices, batch_size=batch_z), but that traces `fn` inside the
    # loop, too late to hoist what blocks share. Traced for a block, not for an index:
    # an ensemble sees how many indices there are, and runs each member once.
    fn = jax.vmap(fn)
    run = after_shared_work(fn, _rows(blocks, 0))
    outputs = _reshape(jax.lax.map(run, blocks), (end,), 2)
    if not rest:
        return outputs
    last = fn(_rows(indices, slice(end, None)))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)


def _rows(tree: Any, rows: int | slice) -> Any:
    """Selects along the first axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _reshape(tree: Any, shape: tuple[int, ...], rank: int) -> Any:
    """Reshapes the first `rank` axes of every leaf to `shape`."""
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[rank:]), tree)


def _default_batch_z(
    fn: Callable[[base.Index], Any], index: base.Index, num_indices: int
) -> int:
    own, shared = _num_bytes(fn, index)
    budget = _MAX_BYTES
    if jax.default_backend() == "cpu":
        budget = max(_CACHE_BYTES - shared, _CACHE_BYTES // 2)
    largest = max(1, budget // max(1, own))
    # A divisor leaves no remainder, which would be compiled apart.
    divisors = [d for d in range(1, num_indices + 1) if num_indices % d == 0]
    fitting = [d for d in divisors if d <= largest]
    return fitting[-1] if 2 * fitting[-1] > largest else min(largest, num_indices)


def _num_bytes(fn: Callable[[base.Index], Any], index: base.Index) -> tuple[int, int]:
    """Returns the size of what `fn` computes with its index, and of what that reads.

    The latter does not depend on the index: it is the same in every call.
    """
    jaxpr = jax.make_jaxpr(fn)(index).jaxpr
    _, own = partition(jaxpr)
    computed = {variable for equation in own for variable in equation.outvars}
    read = {variable for equation in own for variable in inputs_of(equation)}
    return _size(computed), _size(read - computed - set(jaxpr.invars))


def _size(variables: set[Any]) -> int:
    """Returns the bytes of all variables but random keys."""
    return sum(
        v.aval.size * np.dtype(v.aval.dtype).itemsize
        for v in variables
        if not jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.extended)
    )
