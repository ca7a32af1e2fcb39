"""Running the members of an ensemble that an index selects.

Members are stacked: every leaf of the parameters has an axis of `num_members`, the
first one unless `axis` says otherwise. A concrete index outside [0, num_members)
raises ValueError. Inside `jax.jit`, where values are unknown, a negative index counts
from the end and any other index out of range gives NaN, or the smallest integer.

Leaves whose axis has another size do not belong to the ensemble and are returned
unchanged: in a combined network they belong to its other part. If they are the
parameters of an ensemble of another size, Haiku rejects their shape and names them.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from enn import _checks, _sharding, base

Stacked = TypeVar("Stacked")


def select_member(
    stacked: Stacked, index: base.Index, num_members: int, axis: int = 0
) -> Stacked:
    """Returns the entry `index` of every leaf of `stacked`, along `axis`."""
    index = _check_index(index, num_members)

    def select(leaf: chex.Array) -> chex.Array:
        if not _is_stacked(leaf, num_members, axis):
            return leaf
        return jnp.take(leaf, index, axis=axis, mode="fill")

    return jax.tree.map(select, stacked)


def update_member(
    stacked: Stacked, member: Stacked, index: base.Index, num_members: int
) -> Stacked:
    """Returns `stacked` with `member` as the entry `index` of every leaf."""

    def update(leaf: chex.Array, entry: chex.Array) -> chex.Array:
        if not _is_stacked(leaf, num_members):
            return leaf
        return jnp.asarray(leaf).at[index].set(entry)

    return jax.tree.map(update, stacked, member)


def apply_member(
    fn: Callable[[Any, Any], Any],
    stacked: Any,
    inputs: Any,
    index: base.Index,
    num_members: int,
    axis: int = 0,
) -> Any:
    """Returns `fn(member, inputs)` for the member that `index` selects.

    Under `jax.vmap` over at least as many indices as there are members, every member
    runs once and the outputs are picked; otherwise only the selected members run.
    `run_members` tells how.

    Args:
      fn: forward pass of one member.
      stacked: parameters of all members.
      inputs: inputs of the forward pass.
      index: integer scalar in [0, num_members).
      num_members: how many members are stacked.
      axis: axis of the members in every leaf of `stacked`.
    """
    index = _check_index(index, num_members)
    num_indices, in_one_vmap = _num_indices(index, (stacked, inputs))
    if num_indices >= max(num_members, 2):
        outputs = run_members(fn, stacked, inputs, num_members, axis)
        return select_member(outputs, index, num_members)

    def select(index: base.Index) -> Any:
        return select_member(stacked, index, num_members, axis)

    several = in_one_vmap and num_indices > 1
    if several and _runs_in_turn(fn, jax.eval_shape(select, index), inputs):
        indices, position = _all_indices(index, num_indices)
        axes = _axes(stacked, num_members, axis)
        selected = jax.vmap(select, out_axes=axes)(indices)
        outputs = _run_in_turn(fn, selected, inputs, num_indices, axes)
        return select_member(outputs, position, num_indices)
    return fn(select(index), inputs)


def run_members(
    fn: Callable[[Any, Any], Any],
    stacked: Any,
    inputs: Any,
    num_members: int,
    axis: int = 0,
) -> Any:
    """Returns the outputs of all members, on a new first axis.

    As `jax.vmap` gives them, but on a CPU members with convolutions run in turn:
    kernels that are mapped make grouped convolutions, the more so in gradients, which
    cost XLA the square of the number of groups. A training step of 8 LeNets, batch 32,
    takes 1760 ms by `jax.vmap` and 140 ms in turn (2 CPU cores).

    >>> import jax.numpy as jnp
    >>> from enn.networks.many_indices.members import run_members
    >>> weights = jnp.arange(3.0)[:, None]  # [num_members, num_features]
    >>> run_members(lambda w, x: x @ w, weights, jnp.ones((2, 1)), num_members=3)
    Array([[0., 0.],
           [1., 1.],
           [2., 2.]], dtype=float32)

    Args:
      fn: forward pass of one member.
      stacked: parameters of all members.
      inputs: inputs of the forward pass.
      num_members: how many members are stacked.
      axis: axis of the members in every leaf of `stacked`.
    """
    axes = _axes(stacked, num_members, axis)
    first = jax.eval_shape(lambda x: select_member(x, 0, num_members, axis), stacked)
    if num_members > 1 and _runs_in_turn(fn, first, inputs):
        return _run_in_turn(fn, stacked, inputs, num_members, axes)
    leaves, structure = jax.tree.flatten(stacked)
    leaves = [
        leaf if axis is None else _sharding.over_index(leaf, axis)
        for leaf, axis in zip(leaves, structure.flatten_up_to(axes), strict=True)
    ]
    run_all = jax.vmap(fn, in_axes=(axes, None), axis_size=num_members)
    return run_all(jax.tree.unflatten(structure, leaves), inputs)


def _axes(stacked: Any, num_members: int, axis: int) -> Any:
    """Returns the axis of the members for every leaf, None where it has none."""
    return jax.tree.map(
        lambda leaf: axis if _is_stacked(leaf, num_members, axis) else None, stacked
    )


def _runs_in_turn(fn: Callable[[Any, Any], Any], member: Any, inputs: Any) -> bool:
    if _sharding.num_index_devices() > 1:  # Every device runs members of its own.
        return False
    return convolves_on_cpu(lambda member: fn(member, inputs), member)


def convolves_on_cpu(fn: Callable[..., Any], *args: Any) -> bool:
    """Returns whether `fn` at `args`, arrays or shapes, has convolutions for a CPU."""
    if jax.default_backend() != "cpu":
        return False
    return "conv_general_dilated" in str(jax.make_jaxpr(fn)(*args))


def _run_in_turn(
    fn: Callable[[Any, Any], Any], stacked: Any, inputs: Any, num_runs: int, axes: Any
) -> Any:
    def split(leaf: chex.Array, axis: int | None) -> list[chex.Array]:
        if axis is None:
            return [leaf] * num_runs
        # Not by indexing: the gradient of that is as large as all members, each time.
        return [jnp.squeeze(p, axis) for p in jnp.split(leaf, num_runs, axis)]

    leaves, structure = jax.tree.flatten(stacked)
    rows = zip(*map(split, leaves, structure.flatten_up_to(axes)), strict=True)
    run = jax.jit(fn)  # Traced once. A loop would not do: see `look_at_output`.
    outputs = [run(structure.unflatten(row), inputs) for row in rows]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def apply_choice(
    fns: tuple[Callable[[Any], chex.Array], ...], inputs: Any, index: base.Index
) -> chex.Array:
    """Returns `fns[index](inputs)`, evaluating each function at most once.

    A single index evaluates one function; a batch of indices under `jax.vmap`
    evaluates every function once and picks the outputs.
    """
    index = _check_index(index, len(fns))
    if _checks.is_concrete(index):
        return fns[int(index)](inputs)
    if _num_indices(index, inputs)[0] > 1:
        outputs = jnp.stack([fn(inputs) for fn in fns])
        return select_member(outputs, index, len(fns))
    # The switch clamps: its output for an index out of range is filled instead.
    position = jnp.where(index < 0, index + len(fns), index)
    output = jax.lax.switch(position, fns, inputs)
    valid = (position >= 0) & (position < len(fns))
    return select_member(output[None], jnp.where(valid, 0, 1), 1)


def _is_stacked(leaf: chex.Array, num_members: int, axis: int = 0) -> bool:
    return num_members in jnp.shape(leaf)[axis:][:1]


def _check_index(index: base.Index, num_members: int) -> chex.Array:
    if jnp.ndim(index) != 0 or not jnp.issubdtype(jnp.result_type(index), jnp.integer):
        raise ValueError(
            "An ensemble takes an integer scalar as its index, got "
            f"{jnp.result_type(index)} of shape {list(jnp.shape(index))}."
        )
    if not _checks.is_concrete(index):
        return index.astype(jnp.int32)
    if not 0 <= int(index) < num_members:
        raise ValueError(f"index must be in [0, {num_members}), got {int(index)}.")
    return np.int32(index)


def _num_indices(index: chex.Array, others: Any) -> tuple[int, bool]:
    """Number of indices under `jax.vmap` at which the values of `others` are shared.

    One without `jax.vmap`, and inside a `jax.jit` that is itself mapped: what it
    returns is only ever used to choose between equal computations.

    Returns:
      The number, and whether a single `jax.vmap` maps the index.
    """
    # Research code maps `enn.apply` itself: only here is it known how many indices
    # meet one set of parameters. `vmap` calls the rule of `probe`, which notes the
    # size and changes nothing. At 100 indices, 10 MLP members of width 50 and 100
    # rows, running each member once takes 17 Mflop and 0.6 ms instead of 165 Mflop
    # and 4.0 ms, its gradient 1.1 ms instead of 8.5 ms (2 CPU cores).
    if _checks.is_concrete(index):
        return 1, False
    sizes = []

    @custom_vmap
    def probe(index: chex.Array, others: list[chex.Array]) -> chex.Array:
        del others
        return index

    @probe.def_vmap
    def _(
        axis_size: int, in_batched: Any, index: chex.Array, others: list[chex.Array]
    ) -> tuple[chex.Array, bool]:
        index_batched, others_batched = in_batched
        if index_batched:
            sizes.append(1 if any(others_batched) else axis_size)
        return probe(index, others), index_batched

    probe(index, [jax.lax.stop_gradient(x) for x in jax.tree.leaves(others)])
    return math.prod(sizes), len(sizes) == 1


def _all_indices(index: chex.Array, num_indices: int) -> tuple[chex.Array, chex.Array]:
    """Returns the indices over which `jax.vmap` maps, and the position of `index`.

    Args:
      index: an index under a single `jax.vmap` that maps it.
      num_indices: size of the axis that it maps.

    Returns:
      The indices, `[num_indices]`, the same for all of them; an integer scalar.
    """

    @custom_vmap
    def collect(index: chex.Array) -> tuple[chex.Array, chex.Array]:
        return jnp.full(num_indices, index), jnp.int32(0)

    @collect.def_vmap
    def _(axis_size: int, in_batched: Any, index: chex.Array) -> tuple[Any, Any]:
        del in_batched
        return (index, jnp.arange(axis_size, dtype=jnp.int32)), (False, True)

    return collect(index)
