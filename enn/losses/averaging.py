"""Averages a single-index loss over epistemic indices."""

from typing import Literal

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.base import Data, Input, Output
from enn.losses.protocols import SingleLossFn
from enn.networks.indexers import make_batch_indexer

StateMerge = Literal["mean", "updates"]


def average_single_index_loss(
    single_loss: SingleLossFn[Input, Output, Data],
    num_index_samples: int = 1,
    state_merge: StateMerge = "mean",
) -> base.LossFn[Input, Output, Data]:
    """Returns the loss averaged over `num_index_samples` random indices.

    Index s is `enn.indexer(fold_in(key, s))`. The forward passes run as one, under
    `jax.vmap` over the index: what does not depend on it is computed once.

    Every index starts from the same network state and returns its own, and one state
    must come of them. Entries that are not floating-point numbers, such as the
    counters of batch norm, take the value of the first index that changed them.
    For the others there are two rules:

    - `"mean"`: the mean over all indices. Numbers follow the original `enn`. Where
      each index updates only its own part of the state, as the member of an ensemble
      does, the update of that part is diluted by the indices that did not touch it:
      with 1 of 10 indices on a member, its running averages move at a tenth of
      their rate.
    - `"updates"`: entry by entry, the mean over the indices that changed it, so that
      members are updated at full rate and members without an index keep their state.

    Args:
      single_loss: loss at one index, with metrics.
      num_index_samples: number of indices drawn for each batch.
      state_merge: how the states of the indices become one, see above.

    Returns:
      A `LossFn`: the mean loss, the merged state and the mean of each metric.

    Raises:
      ValueError: if `num_index_samples` is no integer >= 1 or `state_merge` is
        unknown; by the loss, if an array of the state changes its shape.
    """
    _checks.positive_int("num_index_samples", num_index_samples)
    _checks.one_of("state_merge", state_merge, ("mean", "updates"))

    def loss_fn(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        indices = make_batch_indexer(enn.indexer, num_index_samples)(key)
        # The batch is no argument of vmap, so that checks of labels see its values.
        losses, (states, metrics) = jax.vmap(
            lambda index: single_loss(enn.apply, params, state, batch, index)
        )(indices)
        return jnp.mean(losses), (
            _merge_states(state, states, state_merge) if states else states,
            jax.tree.map(lambda metric: jnp.mean(metric, axis=0), metrics),
        )

    return loss_fn


def _merge_states(old: hk.State, states: hk.State, rule: StateMerge) -> hk.State:
    def merge(path: tuple, before: chex.Array, after: jax.Array) -> jax.Array:
        if after.shape[1:] != np.shape(before):
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} must keep its shape "
                f"{list(np.shape(before))}, got {list(after.shape[1:])}."
            )
        return _merge(jnp.asarray(before), after, rule)

    return jax.tree_util.tree_map_with_path(merge, old, states)


def _merge(before: jax.Array, after: jax.Array, rule: StateMerge) -> jax.Array:
    """Merges `[num_indices, ...]` into `[...]`, with the dtype of `before`."""
    changed = after != before[None]
    if not jnp.issubdtype(before.dtype, jnp.inexact):
        first_change = jnp.argmax(changed, axis=0, keepdims=True)
        return jnp.take_along_axis(after, first_change, axis=0)[0].astype(before.dtype)
    if rule == "mean":
        return jnp.mean(after, axis=0).astype(before.dtype)
    count = jnp.sum(changed, axis=0)
    mean = jnp.sum(after, axis=0, where=changed) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, before).astype(before.dtype)
