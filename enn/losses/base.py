"""What a loss is, with and without network state, and its mean over indices.

A single-index loss is a loss at one epistemic index; `average_single_index_loss` makes
a loss for training out of it. Losses without network state are thin adapters around
those with state, which also adapt the network that the loss is given.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.base import Data, Input, Output
from enn.datasets.base import ArrayBatch
from enn.metrics.base import at_least_float32
from enn.networks import base as networks_base
from enn.networks.base import ApplyArray, ApplyNoState, EnnArray, EnnNoState
from enn.networks.indexers import make_batch_indexer
from enn.networks.utils import (
    wrap_apply_no_state_as_apply,
    wrap_enn_as_enn_no_state,
    wrap_enn_no_state_as_enn,
)

LossFnArray = base.LossFn[base.AnyArray, networks_base.Output, ArrayBatch]

LossOutputNoState = tuple[chex.Array, base.LossMetrics]


@runtime_checkable
class SingleLossFn(Protocol[Input, Output, Data]):
    """Loss on a batch at one epistemic index."""

    def __call__(
        self,
        apply: base.ApplyFn[Input, Output],
        params: base.AnyTree,
        state: base.AnyTree,
        batch: Data,
        index: base.Index,
        /,
    ) -> base.LossOutput:
        """Returns `(loss, (new_state, metrics))` with scalar loss and metrics."""
        ...


SingleLossFnArray = SingleLossFn[base.AnyArray, networks_base.Output, ArrayBatch]


@runtime_checkable
class LossFnNoState(Protocol):
    """Loss of an ENN without network state; see `enn.base.LossFn`."""

    def __call__(
        self,
        enn: EnnNoState,
        params: base.AnyTree,
        batch: Any,
        key: chex.PRNGKey,
        /,
    ) -> LossOutputNoState:
        """Returns `(loss, metrics)`."""
        ...


@runtime_checkable
class SingleLossFnNoState(Protocol):
    """Loss at one epistemic index of an ENN without network state."""

    def __call__(
        self,
        apply: ApplyNoState,
        params: base.AnyTree,
        batch: Any,
        index: base.Index,
        /,
    ) -> LossOutputNoState:
        """Returns `(loss, metrics)`."""
        ...


StateMerge = Literal["mean", "updates"]


def average_single_index_loss(
    single_loss: SingleLossFn[Input, Output, Data],
    num_index_samples: int = 1,
    state_merge: StateMerge = "mean",
) -> base.LossFn[Input, Output, Data]:
    """Returns the loss averaged over `num_index_samples` random indices.

    (1/S) Σₛ loss(θ, batch, zₛ), zₛ ~ P_Z, an unbiased estimate of the mean over P_Z
    (Osband et al., 2021, https://arxiv.org/abs/2107.08924).

    Index s is `enn.indexer(fold_in(key, s))`. The forward passes run as one, under
    `jax.vmap` over the index: what does not depend on it is computed once.

    Every index starts from the same network state and returns its own; these are
    merged into one. Entries that are not floating-point numbers, such as the
    counters of batch norm, take the value of the first index that changed them.
    For the others there are two rules:

    - `"mean"`: the mean over all indices. Numbers follow the original `enn`. Where
      each index updates only its own part of the state, as the member of an ensemble
      does, the update of that part is diluted by the indices that did not touch it:
      with 1 of 10 indices on a member, its running averages move at a tenth of
      their rate.
    - `"updates"`: entry by entry, the mean over the indices that changed it, so that
      members are updated at full rate and members without an index keep their state.

    >>> import jax, numpy as np
    >>> from enn import base, datasets, losses, networks
    >>> def apply(params, state, x, index):  # Member k predicts k.
    ...     return x * 0 + index, state
    >>> enn = base.EpistemicNetwork(apply, None, networks.EnsembleIndexer(2))
    >>> batch = datasets.ArrayBatch(x=np.zeros([3, 1]), y=np.zeros([3, 1]))
    >>> loss_fn = losses.average_single_index_loss(losses.L2Loss(), 100)
    >>> loss, _ = loss_fn(enn, {}, {}, batch, jax.random.key(0))
    >>> round(float(loss), 2)  # Share of the indices that are 1.
    0.43

    Args:
      single_loss: loss at one index, with metrics.
      num_index_samples: number of indices drawn for each batch.
      state_merge: how the states of the indices are merged, see above.

    Returns:
      A `LossFn`: the mean loss, the merged state and the mean of each metric.

    Raises:
      ValueError: unless `num_index_samples` is an integer >= 1 and `state_merge` is
        known; from the loss, if an array of the state changes shape.
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
        at_indices = average_over_indices(single_loss, indices, state_merge)
        return at_indices(enn, params, state, batch, key)

    return loss_fn


def average_over_indices(
    single_loss: SingleLossFn[Input, Output, Data],
    indices: base.Index,
    state_merge: StateMerge = "mean",
) -> base.LossFn[Input, Output, Data]:
    """Returns the loss averaged over given indices, the same ones at every step.

    (1/S) Σₛ loss(θ, batch, zₛ) for the indices z₁ … z_S.

    The loss of all K members of an ensemble is `average_over_indices(single_loss,
    jnp.arange(K))`: then each member trains at every step.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from enn import base, datasets, losses, networks
    >>> def apply(params, state, x, index):  # Member k predicts k.
    ...     return x * 0 + index, state
    >>> enn = base.EpistemicNetwork(apply, None, networks.EnsembleIndexer(4))
    >>> batch = datasets.ArrayBatch(x=np.zeros([3, 1]), y=np.zeros([3, 1]))
    >>> loss_fn = losses.average_over_indices(losses.L2Loss(), jnp.arange(4))
    >>> loss, _ = loss_fn(enn, {}, {}, batch, jax.random.key(0))
    >>> float(loss)  # (0² + 1² + 2² + 3²) / 4
    3.5

    Args:
      single_loss: loss at one index, with metrics.
      indices: epistemic indices, stacked along the first axis of every leaf.
      state_merge: how the states of the indices are merged, see
        `average_single_index_loss`. For an ensemble with state choose `"updates"`.

    Returns:
      A `LossFn`: the mean loss, the merged state and the mean of each metric. It does
      not use its key.

    Raises:
      ValueError: unless there is at least one index, as many in all leaves, and
        `state_merge` is known; from the loss, if an array of the state changes shape.
    """
    _checks.one_of("state_merge", state_merge, ("mean", "updates"))
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(indices)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in {(), (0,)}:
        raise ValueError(
            "indices must be stacked along a first axis of size >= 1, got arrays of "
            f"the shapes {shapes}."
        )

    def loss_fn(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        del key
        # vmap does not trace the batch, so that checks of labels see its values.
        losses, (states, metrics) = jax.vmap(
            lambda index: single_loss(enn.apply, params, state, batch, index)
        )(indices)
        return jnp.mean(at_least_float32(losses)), (
            _merge_states(state, states, state_merge) if states else states,
            jax.tree.map(lambda m: jnp.mean(at_least_float32(m), axis=0), metrics),
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
        # Plain indexing: typed random keys, which a state may hold, know no other.
        first_change = jnp.argmax(changed, axis=0).ravel()
        flat = after.reshape(len(after), -1)
        merged = flat[first_change, jnp.arange(before.size)].reshape(before.shape)
        return merged if merged.dtype == before.dtype else merged.astype(before.dtype)
    after = at_least_float32(after)
    if rule == "mean":
        return jnp.mean(after, axis=0).astype(before.dtype)
    count = jnp.sum(changed, axis=0)
    mean = jnp.sum(after, axis=0, where=changed) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, before).astype(before.dtype)


def wrap_single_loss_as_single_loss_no_state(
    single_loss: SingleLossFnArray, constant_state: hk.State | None = None
) -> SingleLossFnNoState:
    """Returns `single_loss` for networks without state.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> loss_fn = losses.wrap_single_loss_as_single_loss_no_state(losses.L2Loss())
    >>> batch = datasets.ArrayBatch(x=np.ones([3, 1]), y=np.zeros([3, 1]))
    >>> loss, _ = loss_fn(lambda params, x, index: params * x, 2.0, batch, index=0)
    >>> float(loss)
    4.0

    Args:
      single_loss: called with a network that accepts and ignores a state.
      constant_state: the state that it is given, empty if None.
    """

    def new_loss(
        apply: ApplyNoState, params: hk.Params, batch: Any, index: base.Index
    ) -> LossOutputNoState:
        apply_with_state = wrap_apply_no_state_as_apply(apply)
        state = constant_state or {}
        loss, (_, metrics) = single_loss(apply_with_state, params, state, batch, index)
        return loss, metrics

    return new_loss


def wrap_single_loss_no_state_as_single_loss(
    single_loss: SingleLossFnNoState, constant_state: hk.State | None = None
) -> SingleLossFnArray:
    """Returns `single_loss` for networks with state.

    >>> from enn import losses
    >>> def plain_loss(apply, params, batch, index):
    ...     return params * batch, {"batch": batch}
    >>> loss_fn = losses.wrap_single_loss_no_state_as_single_loss(plain_loss)
    >>> loss_fn(apply=None, params=2.0, state={}, batch=3.0, index=0)
    (6.0, ({}, {'batch': 3.0}))

    Args:
      single_loss: called with a network without state.
      constant_state: the state of every forward pass, in place of the one that the
        loss is given, and the new state that it returns; empty if None.
    """
    constant = constant_state or {}

    def new_loss(
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: Any,
        index: base.Index,
    ) -> base.LossOutput:
        def apply_no_state(
            params: hk.Params, inputs: chex.Array, index: base.Index
        ) -> networks_base.Output:
            return apply(params, constant, inputs, index)[0]

        loss, metrics = single_loss(apply_no_state, params, batch, index)
        return loss, (constant, metrics)

    return new_loss


def wrap_loss_as_loss_no_state(loss_fn: LossFnArray) -> LossFnNoState:
    """Returns `loss_fn` for networks without state.

    >>> import jax, numpy as np
    >>> from enn import datasets, losses, networks
    >>> average = losses.average_single_index_loss(losses.L2Loss())
    >>> keys, key = networks.PrngIndexer(), jax.random.key(0)
    >>> enn = networks.EnnNoState(lambda params, x, z: params * x, None, keys)
    >>> batch = datasets.ArrayBatch(x=np.ones([3, 1]), y=np.zeros([3, 1]))
    >>> float(losses.wrap_loss_as_loss_no_state(average)(enn, 2.0, batch, key)[0])
    4.0
    """

    def new_loss(
        enn: EnnNoState, params: hk.Params, batch: Any, key: chex.PRNGKey
    ) -> LossOutputNoState:
        enn_with_state = wrap_enn_no_state_as_enn(enn)
        loss, (_, metrics) = loss_fn(enn_with_state, params, {}, batch, key)
        return loss, metrics

    return new_loss


def wrap_loss_no_state_as_loss(
    loss_fn: LossFnNoState, constant_state: hk.State | None = None
) -> LossFnArray:
    """Returns `loss_fn` for networks with state.

    Args:
      loss_fn: called with a network without state.
      constant_state: the state of every forward pass, in place of the one that the
        loss is given, and the new state that it returns; empty if None.
    """

    def new_loss(
        enn: EnnArray,
        params: hk.Params,
        state: hk.State,
        batch: Any,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        enn_no_state = wrap_enn_as_enn_no_state(enn, constant_state)
        loss, metrics = loss_fn(enn_no_state, params, batch, key)
        return loss, (constant_state or {}, metrics)

    return new_loss


def average_single_index_loss_no_state(
    single_loss: SingleLossFnNoState, num_index_samples: int = 1
) -> LossFnNoState:
    """`average_single_index_loss` for networks without state.

    >>> import jax
    >>> from enn import losses, networks
    >>> def single_loss(apply, params, batch, index):
    ...     return apply(params, batch, index), {}
    >>> keys, key = networks.PrngIndexer(), jax.random.key(0)
    >>> enn = networks.EnnNoState(lambda params, x, z: params * x, None, keys)
    >>> loss_fn = losses.average_single_index_loss_no_state(single_loss, 3)
    >>> float(loss_fn(enn, 2.0, 3.0, key)[0])
    6.0
    """
    with_state = wrap_single_loss_no_state_as_single_loss(single_loss)
    averaged = average_single_index_loss(with_state, num_index_samples)
    return wrap_loss_as_loss_no_state(averaged)
