"""Where arrays lie on a mesh of devices: JAX's SPMD partitioning, by axis name.

The rows of a batch are sharded over the axis `data` of a mesh, members of ensembles
and epistemic indices over its axis `index`; all else is replicated. XLA partitions
programs accordingly. Without a mesh, None, everything stays where it is.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"
INDEX = "index"

Tree = TypeVar("Tree")
_Fn = TypeVar("_Fn", bound=Callable[..., Any])


def check_mesh(mesh: Any) -> Mesh | None:
    """Returns `mesh` with axes that XLA partitions programs over, or None for None.

    Raises:
      TypeError: if `mesh` is neither a `jax.sharding.Mesh` nor None.
      ValueError: if it has other axes than `data` and `index`, or none.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}.")
    if not mesh.axis_names or set(mesh.axis_names) - {DATA, INDEX}:
        raise ValueError(
            f"mesh must have the axis {DATA!r}, {INDEX!r} or both, got axes "
            f"{list(mesh.axis_names)}."
        )
    return _with_auto_axes(mesh)


def _with_auto_axes(mesh: Any) -> Mesh:
    # The axes of `jax.make_mesh` put shardings into types, which ties the code to them.
    axis_types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=axis_types)


def off_mesh() -> contextlib.AbstractContextManager[Any]:
    """Returns a context that a user's mesh with explicit axes does not reach into.

    Under `jax.set_mesh` of such a mesh all arrays carry it in their types, and do not
    mix with arrays on other meshes.
    """
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return contextlib.nullcontext()
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def untyped(tree: Tree) -> Tree:
    """Returns `tree` without explicit axes of a mesh in the types of its arrays."""

    def put(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(leaf, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
            return leaf
        if AxisType.Explicit not in sharding.mesh.axis_types:
            return leaf
        if not leaf.is_fully_replicated:
            mesh = _with_auto_axes(sharding.mesh)
            return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))
        with off_mesh():
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = jax.numpy.asarray(np.asarray(jax.random.key_data(leaf)))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            return jax.numpy.asarray(np.asarray(leaf))

    return jax.tree.map(put, tree)


def retyped(tree: Tree) -> Tree:
    """Returns results as a user's mesh with explicit axes, if any, has its arrays."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return tree
    return put_everywhere(jax.sharding.get_mesh(), tree)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which `over_index` knows the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Returns the sharding of what every device holds, for `jax.jit`."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def put_everywhere(mesh: Mesh | None, tree: Tree) -> Tree:
    """Returns `tree` with every array whole on every device."""
    return tree if mesh is None else jax.device_put(tree, replicated(mesh))


def put_rows(mesh: Mesh | None, batch: Tree, axis: int = 0) -> Tree:
    """Returns a batch with its rows sharded over `data`.

    Args:
      mesh: the mesh.
      batch: arrays with one row an example; those without an axis `axis` are
        replicated. Where the mesh spans several processes, each gives the rows of its
        own devices, and the result is the batch of all.
      axis: axis of the rows.

    Raises:
      ValueError: if the rows do not divide over the devices.
    """
    if mesh is None:
        return batch
    num_devices = mesh.local_mesh.shape.get(DATA, 1)

    def put(leaf: Any) -> jax.Array:
        shape, spec = np.shape(leaf), PartitionSpec()
        if DATA in mesh.shape and len(shape) > axis:
            spec = PartitionSpec(*[None] * axis, DATA)
            if shape[axis] % num_devices:
                raise ValueError(
                    f"A batch must divide over the {num_devices} devices of the "
                    f"mesh's axis {DATA!r}, got {shape[axis]} rows."
                )
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(put, batch)


def put_members(mesh: Mesh | None, tree: Tree, indexer: Any) -> Tree:
    """Returns `tree` with the members of an ensemble sharded over `index`.

    An array has members if its first axis, or else its last one, is of their number.
    Other arrays are replicated, and all are if the members do not divide over the
    devices.

    Args:
      mesh: the mesh.
      tree: parameters and the like; of several processes, those of the first count.
      indexer: that of the network; with `num_ensemble` if it is an ensemble.
    """
    if mesh is None:
        return tree
    num_members = getattr(indexer, "num_ensemble", None)
    divides = (
        num_members and INDEX in mesh.shape and not num_members % mesh.shape[INDEX]
    )

    def sharding(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        if divides and num_members in (*shape[:1], *shape[-1:]):
            axis = 0 if shape[0] == num_members else -1
            return NamedSharding(mesh, _index_spec(len(shape), axis, None))
        return NamedSharding(mesh, PartitionSpec())

    leaves = jax.tree.leaves(tree)
    if not mesh.is_multi_process or not all(map(_is_local, leaves)):
        return jax.device_put(tree, jax.tree.map(sharding, tree))
    # Processors of different make round differently, and so would start apart.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            sharding(leaf), leaf, leaf.shape
        ),
        multihost_utils.broadcast_one_to_all(tree),
    )


def _is_local(leaf: Any) -> bool:
    return getattr(leaf, "is_fully_addressable", True)


def over_index(tree: Tree, axis: int = 0) -> Tree:
    """Returns `tree` with the axis `axis` of every array sharded over `index`.

    Inside `on_mesh` and `jax.jit`, for a mesh with such an axis; otherwise `tree`.
    """
    if num_index_devices() == 1:
        return tree
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(
            leaf, _index_spec(np.ndim(leaf), axis, PartitionSpec.UNCONSTRAINED)
        ),
        tree,
    )


def num_index_devices() -> int:
    """Returns the number of devices along `index` of the mesh of `on_mesh`, or 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[INDEX] if INDEX in mesh.auto_axes else 1


def _index_spec(rank: int, axis: int, others: Any) -> PartitionSpec:
    axes = [others] * rank
    axes[axis] = INDEX
    return PartitionSpec(*axes)


def fetch(mesh: Mesh | None, tree: Tree) -> Tree:
    """Returns arrays on a mesh as NumPy arrays, whole in every process."""
    return tree if mesh is None else jax.device_get(put_everywhere(mesh, tree))


def allow_explicit_axes(fn: _Fn) -> _Fn:
    """Returns `fn`, for arrays sharded over the explicit axes of a mesh too.

    Those are the axes of `jax.make_mesh`. They put shardings into the types of arrays,
    and then leave it to the user how to shard what gathers, sorts and splits give. Here
    XLA decides, as on meshes of other axes.

    Args:
      fn: gives arrays. With explicit axes these are whole on every device.
    """

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        arrays = [leaves[i] for i in places]
        meshes = (jax.typeof(array).sharding.mesh for array in arrays)
        mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
        if mesh is None:
            return fn(*args, **kwargs)

        def call(*arrays: jax.Array) -> Any:
            for i, array in zip(places, arrays, strict=True):
                leaves[i] = array
            args, kwargs = jax.tree.unflatten(treedef, leaves)
            return fn(*args, **kwargs)

        everywhere = NamedSharding(mesh, PartitionSpec())
        axes = mesh.explicit_axes
        return jax.sharding.auto_axes(call, axes=axes, out_sharding=everywhere)(*arrays)

    return wrapped  # pyrefly: ignore[bad-return]
