"""Forward passes at many epistemic indices at once."""

from typing import Any, Protocol, TypeVar

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.index_map import map_indices
from enn.networks.indexers import EnsembleIndexer
from enn.networks.outputs import parse_net_output

Input = TypeVar("Input", contravariant=True)


class EnnBatchFwd(Protocol[Input]):
    """Predictions of one network at a set of indices."""

    def __call__(self, params: hk.Params, state: hk.State, inputs: Input) -> chex.Array:
        """Returns predictions `[num_enn_samples, batch, num_outputs]`."""
        ...


def make_batch_fwd(
    enn: base.EpistemicNetwork,
    num_enn_samples: int = 1000,
    seed: int = 66,
    batch_z: int | None = None,
) -> EnnBatchFwd:
    """Returns a compiled forward pass at `num_enn_samples` fixed indices.

    The indices are drawn once, from `seed`: every call uses the same ones. The new
    network state is discarded.

    Args:
      enn: the network to evaluate.
      num_enn_samples: how many indices.
      seed: seed of the indices.
      batch_z: how many indices to evaluate at once; see `predict_at_indices`.

    Raises:
      ValueError: if `num_enn_samples` or `batch_z` is no integer >= 1.
    """
    _checks.positive_int("num_enn_samples", num_enn_samples)
    keys = jax.random.split(jax.random.PRNGKey(seed), num_enn_samples)
    indices = jax.vmap(enn.indexer)(keys)

    @jax.jit
    def batch_fwd(params: hk.Params, state: hk.State, inputs: Any) -> chex.Array:
        return predict_at_indices(enn, params, state, inputs, indices, batch_z)

    return batch_fwd


def predict_at_indices(
    enn: base.EpistemicNetwork,
    params: hk.Params,
    state: hk.State,
    inputs: Any,
    indices: base.Index,
    batch_z: int | None = None,
) -> chex.Array:
    """Returns the predictions at stacked indices, `[num_indices, batch, ...]`.

    What does not depend on the index is computed once, and every member of an
    ensemble runs at most once. The new network state is discarded.

    Args:
      enn: the network to evaluate.
      params: its parameters.
      state: its state.
      inputs: inputs, `[batch, ...]`.
      indices: indices stacked on the first axis of every leaf.
      batch_z: how many indices to evaluate at once. By default so many that memory
        stays bounded; the result does not depend on it.
    """

    def predict(index: base.Index) -> chex.Array:
        return parse_net_output(enn.apply(params, state, inputs, index)[0])

    if isinstance(enn.indexer, EnsembleIndexer):
        members = jnp.arange(enn.indexer.num_ensemble)
        if len(members) < len(indices):
            return map_indices(predict, members, batch_z)[indices]
    return map_indices(predict, indices, batch_z)
