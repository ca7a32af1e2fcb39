"""Forward passes at many epistemic indices at once."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, _sharding, base
from enn.networks.indexers import EnsembleIndexer, draw_indices
from enn.networks.many_indices.index_map import map_indices
from enn.networks.many_indices.members import convolves_on_cpu
from enn.networks.utils import parse_net_output

Input = TypeVar("Input", contravariant=True)


class EnnBatchFwd(Protocol[Input]):
    """Predictions of one network at a set of indices."""

    def __call__(
        self,
        params: base.AnyTree,
        state: base.AnyTree,
        inputs: Input,
        key: chex.PRNGKey | None = None,
    ) -> jax.Array:
        """Returns predictions `[num_enn_samples, batch, num_outputs]`.

        Args:
          params: parameters of the network.
          state: its state.
          inputs: inputs, `[batch, ...]`.
          key: draws other indices than those fixed when this was made.
        """
        ...


def make_batch_fwd(
    enn: base.EpistemicNetwork,
    num_enn_samples: int = 1000,
    seed: int = 66,
    batch_z: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> EnnBatchFwd:
    """Returns a compiled forward pass at `num_enn_samples` fixed indices.

    The indices are drawn once, from `seed`: every call uses the same ones. A PRNG key
    as optional fourth argument of the result draws others. The new network state is
    discarded.

    >>> import numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, inputs, index):  # f(x, z) = x z
    ...     return inputs @ index[:, None], state
    >>> enn = base.EpistemicNetwork(apply, None, networks.GaussianIndexer(1))
    >>> forward = networks.make_batch_fwd(enn, num_enn_samples=100)
    >>> samples = forward({}, {}, np.array([[1.0], [10.0]]))  # [100, 2, 1]
    >>> near, far = samples.std(axis=0)[:, 0]
    >>> round(float(far / near), 3)
    10.0

    Args:
      enn: the network to evaluate.
      num_enn_samples: how many indices.
      seed: seed of the indices.
      batch_z: how many indices to evaluate at once; see `predict_at_indices`.
      mesh: devices to share the work, see `compile_forward`.

    Raises:
      ValueError: if `num_enn_samples` or `batch_z` is not an integer >= 1, or for a
        mesh with other axes.
    """
    _checks.positive_int("num_enn_samples", num_enn_samples)
    draw = functools.partial(draw_indices, enn.indexer, num_indices=num_enn_samples)
    fixed_indices = draw(jax.random.PRNGKey(seed))

    def batch_fwd(
        params: base.AnyTree,
        state: base.AnyTree,
        inputs: Any,
        key: chex.PRNGKey | None = None,
    ) -> jax.Array:
        indices = fixed_indices if key is None else draw(key)
        return predict_at_indices(enn, params, state, inputs, indices, batch_z)

    return compile_forward(batch_fwd, enn.indexer, mesh)


def compile_forward(
    forward: Callable[..., jax.Array],
    indexer: base.EpistemicIndexer,
    mesh: jax.sharding.Mesh | None,
) -> Callable[..., jax.Array]:
    """Returns a forward pass at many indices, compiled for one device or for a mesh.

    On a mesh, rows of the inputs are sharded over its axis `data`, and indices and the
    members of an ensemble over its axis `index`; it has one of these axes or both. The
    predictions are left on the mesh. Where it spans several processes, each gives the
    rows of its own devices, and the predictions are those for the rows of all:
    `jax.experimental.multihost_utils.process_allgather(..., tiled=True)` fetches them.

    Args:
      forward: function of parameters, state, inputs and any further arguments.
      indexer: that of the network whose members may be sharded.
      mesh: the mesh; None for one device.

    Raises:
      TypeError: if `mesh` is not a mesh.
      ValueError: for a mesh with other axes; by the result, for inputs whose rows do
        not divide over the devices.
    """
    mesh = _sharding.check_mesh(mesh)
    compiled = jax.jit(forward)
    if mesh is None:
        return compiled

    @functools.wraps(forward)
    def on_mesh(
        params: base.AnyTree, state: hk.State, inputs: Any, *args: Any, **kwargs: Any
    ) -> jax.Array:
        params, state, inputs, args, kwargs = _sharding.untyped(
            (params, state, inputs, args, kwargs)
        )
        params, state = _sharding.put_members(mesh, (params, state), indexer)
        inputs = _sharding.put_rows(mesh, inputs)
        with _sharding.on_mesh(mesh):
            return compiled(params, state, inputs, *args, **kwargs)

    return on_mesh


def predict_at_indices(
    enn: base.EpistemicNetwork,
    params: base.AnyTree,
    state: base.AnyTree,
    inputs: Any,
    indices: base.Index,
    batch_z: int | None = None,
) -> jax.Array:
    """Returns the predictions at stacked indices, `[num_indices, batch, ...]`.

    What does not depend on the index is computed once, and every member of an
    ensemble runs at most once. The new network state is discarded.

    >>> import numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, inputs, index):  # f(x, z) = x z
    ...     return inputs @ index[:, None], state
    >>> enn = base.EpistemicNetwork(apply, None, networks.GaussianIndexer(1))
    >>> x, indices = np.array([[1.0], [10.0]]), np.array([[2.0], [3.0], [4.0]])
    >>> networks.predict_at_indices(enn, {}, {}, x, indices)[:, :, 0].tolist()
    [[2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]

    Args:
      enn: the network to evaluate.
      params: its parameters.
      state: its state.
      inputs: inputs, `[batch, ...]`.
      indices: indices stacked on the first axis of every leaf.
      batch_z: how many indices to evaluate at once. By default so many that memory
        stays bounded; the result does not depend on it.
    """

    def predict(index: base.Index) -> jax.Array:
        return parse_net_output(enn.apply(params, state, inputs, index)[0])

    if not isinstance(enn.indexer, EnsembleIndexer):
        return map_indices(predict, indices, batch_z)
    members = jnp.arange(enn.indexer.num_ensemble)
    run = members if len(members) < len(indices) else indices
    if batch_z is None and convolves_on_cpu(predict, run[0]):
        batch_z = len(run)  # One after the other as it is; a loop would slow them down.
    outputs = map_indices(predict, run, batch_z)
    return outputs[indices] if run is members else outputs
