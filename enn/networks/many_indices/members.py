"""Running the members of an ensemble that an index selects.

Members are stacked: every leaf of the parameters has an axis of `num_members`, the
first one unless `axis` says otherwise. A concrete index outside [0, num_members)
raises ValueError. Inside `jax.jit`, where values are unknown, a negative index counts
from the end and any other index out of range gives NaN, or the smallest integer.

Leaves whose axis has another size do not belong to the ensemble and are returned
unchanged: in a combined network they belong to its other part. If they are the
parameters of an ensemble of another size, Haiku rejects their shape and names them.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

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
    params, rest = jax.tree.leaves(stacked), jax.tree.leaves(inputs)
    maps = _maps_of(index, [*params, *rest])
    if maps.num_shared >= max(num_members, 2):
        outputs = run_members(fn, stacked, inputs, num_members, axis)
        return select_member(outputs, index, num_members)

    def select(index: base.Index) -> Any:
        return select_member(stacked, index, num_members, axis)

    own = maps.mapped[len(params) :]
    if (
        maps.size > 1
        and not any(maps.mapped[: len(params)])
        and not _have_tangents(list(itertools.compress(rest, own)))
        and _runs_in_turn(fn, jax.eval_shape(select, index), inputs)
    ):
        (indices, *rest), position = _at_all_indices(
            [index, *rest], [True, *own], maps.size
        )
        structure = jax.tree.structure(inputs)
        axes = _axes(stacked, num_members, axis)
        outputs = _run_in_turn(
            fn,
            (jax.vmap(select, out_axes=axes)(indices), structure.unflatten(rest)),
            maps.size,
            (axes, structure.unflatten([0 if mapped else None for mapped in own])),
        )
        return select_member(outputs, position, maps.size)
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
        unmapped = jax.tree.map(lambda leaf: None, inputs)
        return _run_in_turn(fn, (stacked, inputs), num_members, (axes, unmapped))
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


def _run_in_turn(fn: Callable[..., Any], args: Any, num_runs: int, axes: Any) -> Any:
    """Returns `jax.vmap(fn, axes)(*args)`, one run after the other."""

    def split(leaf: chex.Array, axis: int | None) -> list[chex.Array]:
        if axis is None:
            return [leaf] * num_runs
        # Not by indexing: the gradient of that is as large as all members, each time.
        return [jnp.squeeze(p, axis) for p in jnp.split(leaf, num_runs, axis)]

    leaves, structure = jax.tree.flatten(args)
    rows = zip(*map(split, leaves, structure.flatten_up_to(axes)), strict=True)
    run = jax.jit(fn)  # Traced once. A loop would not do: see `look_at_output`.
    outputs = [run(*structure.unflatten(row)) for row in rows]
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
    if _maps_of(index, jax.tree.leaves(inputs)).num_shared > 1:
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


class _Maps(NamedTuple):
    """How `jax.vmap` maps an index, and values that meet it.

    Attributes:
      num_shared: number of indices at which the values are the same.
      size: number of indices of the one map over it; 1 where there are none or several.
      mapped: whether that map is over each of the values too.
    """

    num_shared: int
    size: int
    mapped: list[bool]


def _maps_of(index: chex.Array, values: list[chex.Array]) -> _Maps:
    """Returns how an index is mapped; as if it were not inside a `jax.jit` that is.

    What this returns is only ever used to choose between equal computations.
    """
    # Research code maps `enn.apply` itself: only here is it known how many indices
    # meet one set of parameters. `vmap` calls the rule of `probe`, which notes the
    # size and changes nothing. At 100 indices, 10 MLP members of width 50 and 100
    # rows, running each member once takes 17 Mflop and 0.6 ms instead of 165 Mflop
    # and 4.0 ms, its gradient 1.1 ms instead of 8.5 ms (2 CPU cores).
    none = _Maps(1, 1, [False] * len(values))
    if _checks.is_concrete(index):
        return none
    maps: list[_Maps] = []

    @custom_vmap
    def probe(index: chex.Array, values: list[chex.Array]) -> chex.Array:
        del values
        return index

    @probe.def_vmap
    def _(
        axis_size: int, in_batched: Any, index: chex.Array, values: list[chex.Array]
    ) -> tuple[chex.Array, bool]:
        index_batched, mapped = in_batched
        if index_batched:
            maps.append(_Maps(1 if any(mapped) else axis_size, axis_size, mapped))
        return probe(index, values), index_batched

    probe(index, [jax.lax.stop_gradient(x) for x in values])
    if len(maps) == 1:
        return maps[0]
    return none._replace(num_shared=math.prod(m.num_shared for m in maps))


def _at_all_indices(
    values: list[chex.Array], mapped: list[bool], size: int
) -> tuple[list[chex.Array], chex.Array]:
    """Returns the values at all indices of a map, and the position of this index.

    Args:
      values: values under a single `jax.vmap`.
      mapped: whether it maps each of them.
      size: size of the axis that it maps.

    Returns:
      Mapped values as `[size, ...]`, the same at all indices, others as they are; an
      integer scalar.
    """

    @custom_vmap
    def collect(values: list[chex.Array]) -> tuple[Any, Any]:
        rows = [jnp.broadcast_to(v, (size, *jnp.shape(v))) for v in values]
        return rows, jnp.int32(0)

    @collect.def_vmap
    def _(axis_size: int, in_batched: Any, values: list[chex.Array]) -> tuple[Any, Any]:
        positions = jnp.arange(axis_size, dtype=jnp.int32)
        return (values, positions), ([False] * len(values), True)

    rows, position = collect(list(itertools.compress(values, mapped)))
    remaining = iter(rows)
    return [
        next(remaining) if is_mapped else value
        for value, is_mapped in zip(values, mapped, strict=True)
    ], position


def _have_tangents(values: list[chex.Array]) -> bool:
    """Returns whether one of the values is being differentiated.

    `custom_vmap` has no gradient backwards.
    """
    noted: list[bool] = []

    @jax.custom_jvp
    def probe(values: list[chex.Array]) -> list[chex.Array]:
        return values

    @probe.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        noted.append(True)
        return primals[0], tangents[0]

    probe(values)
    return bool(noted)
