"""Recording parameters while an optimiser runs, in the optimiser's own state.

A recorder wraps any optimiser and changes nothing about its updates. What it records
is part of the optimiser state: it is saved, restored and replicated with it, and a run
that was interrupted records the same as one that was not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import _checks

Record = TypeVar("Record", bound=tuple)


class Samples(NamedTuple):
    """The last samples of parameters.

    Attributes:
      count: how many were taken so far; sample i, from 0 on, is in slot i modulo the
        number of slots.
      params: a tree like the parameters, with a leading axis of slots.
    """

    count: jax.Array
    params: Any


class RecorderState(NamedTuple):
    """State of an optimiser with a recorder.

    Attributes:
      inner: state of the optimiser.
      step: number of updates so far.
      first: the number of the update after which the record starts.
      record: what was recorded.
    """

    inner: optax.OptState
    step: jax.Array
    first: jax.Array
    record: Any


def record(
    optimizer: optax.GradientTransformation,
    every: int,
    burn_in: int,
    init: Callable[[Any], Record],
    add: Callable[[Record, Any], Record],
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with a record of the parameters it makes.

    Parameters are added after update t, counted from 1, if t >= burn_in and t - burn_in
    is a multiple of `every`.

    Args:
      optimizer: any optax transformation.
      every: number of updates from one addition to the next.
      burn_in: number of updates before the first addition.
      init: makes an empty record for the parameters, with a field `count`.
      add: returns the record with parameters added, in arrays of the same types.

    Raises:
      ValueError: unless `every` is an integer >= 1 and `burn_in` one >= 0; by the
        result's `update` without parameters.
    """
    _checks.positive_int("every", every)
    _checks.non_negative_int("burn_in", burn_in)
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> RecorderState:
        step, first = (jnp.array(n, jnp.int32) for n in (0, burn_in or every))
        return RecorderState(inner.init(params), step, first, init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecorderState]:
        if params is None:
            raise ValueError(
                "A recorder needs the parameters: call update(grads, state, params)."
            )
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        step = state.step + 1
        # `cond` leaves the record in place inside a loop over steps.
        new_record = jax.lax.cond(
            (step >= burn_in) & ((step - burn_in) % every == 0),
            add,
            lambda old, _: old,
            state.record,
            optax.apply_updates(params, updates),
        )
        return updates, RecorderState(inner_state, step, state.first, new_record)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def find_record(opt_state: optax.OptState, kind: type[Record], by: str) -> Record:
    """Returns the record of a type, wherever it is in the state of an optimiser.

    Args:
      opt_state: state of an optimiser.
      kind: type of the record, with a field `count`.
      by: name of the function that makes such recorders, for the errors.

    Raises:
      ValueError: if there is no such record or more than one, or it is empty.
    """

    def is_recorder(node: Any) -> bool:
        return isinstance(node, RecorderState) and isinstance(node.record, kind)

    # A recorder around another one has it among its own children.
    found, nodes = [], [opt_state]
    while nodes:
        leaves = jax.tree.leaves(nodes, is_leaf=lambda x: isinstance(x, RecorderState))
        recorders = [leaf for leaf in leaves if isinstance(leaf, RecorderState)]
        found += filter(is_recorder, recorders)
        nodes = [recorder.inner for recorder in recorders]
    if len(found) != 1:
        raise ValueError(
            f"opt_state must have one recorder made by {by}, got {len(found)}."
        )
    if not found[0].record.count:
        raise ValueError(
            f"Nothing is recorded yet: the first sample is taken after step "
            f"{int(found[0].first)}, and this is step {int(found[0].step)}."
        )
    return found[0].record


def in_order(slots: Any, count: int) -> Any:
    """Returns the filled entries of a ring buffer, oldest first.

    Args:
      slots: tree of arrays `[num_slots, ...]`; entry i was put at i % num_slots.
      count: how many entries were put.
    """

    def order(leaf: jax.Array) -> jax.Array:
        size = len(leaf)
        return leaf[np.arange(max(0, count - size), count) % size]

    return jax.tree.map(order, slots)


def put(slots: Any, count: jax.Array, entry: Any) -> Any:
    """Returns a ring buffer with the entry number `count` put over the oldest one."""
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(
            leaf, new.astype(leaf.dtype), count % len(leaf), 0
        ),
        slots,
        entry,
    )


def track_samples(
    optimizer: optax.GradientTransformation,
    num_samples: int,
    every: int,
    burn_in: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with a record of the last `num_samples` parameters.

    Parameters are taken after update t, counted from 1, if t >= burn_in and t - burn_in
    is a multiple of `every`; `get_samples` returns them.

    Inside a loop over many steps, as in `supervised.Experiment`, this costs a copy of
    the parameters for each sample. Where each step is a dispatch of its own the whole
    record is copied at every step: then rather copy the parameters between steps.

    >>> import jax.numpy as jnp, optax
    >>> from enn import posteriors
    >>> counter = posteriors.track_samples(optax.sgd(1.0), 3, every=2, burn_in=3)
    >>> params, state = jnp.array(0.0), counter.init(jnp.array(0.0))
    >>> for _ in range(10):
    ...     updates, state = counter.update(jnp.array(-1.0), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> posteriors.get_samples(state).tolist()
    [5.0, 7.0, 9.0]

    Args:
      optimizer: any optax transformation, such as `sgld`.
      num_samples: how many samples are kept: the last ones.
      every: number of updates from one sample to the next.
      burn_in: number of updates before the first sample.

    Raises:
      ValueError: unless `num_samples` and `every` are integers >= 1, and `burn_in`
        is one >= 0.
    """
    _checks.positive_int("num_samples", num_samples)

    def init(params: optax.Params) -> Samples:
        slots = jax.tree.map(
            lambda p: jnp.zeros([num_samples, *jnp.shape(p)], jnp.result_type(p)),
            params,
        )
        return Samples(jnp.zeros([], jnp.int32), slots)

    def add(samples: Samples, params: optax.Params) -> Samples:
        slots = put(samples.params, samples.count, params)
        return Samples(samples.count + 1, slots)

    return record(optimizer, every, burn_in, init, add)


def get_samples(opt_state: optax.OptState) -> Any:
    """Returns the recorded parameters, oldest first, stacked.

    Args:
      opt_state: state of an optimiser with `track_samples` somewhere in it.

    Returns:
      A tree like the parameters, of arrays `[count, ...]`, for
      `networks.from_network_samples`; count is at most `num_samples`.

    Raises:
      ValueError: without such a recorder, or before its first sample.
    """
    samples = find_record(opt_state, Samples, "posteriors.track_samples")
    return in_order(samples.params, int(samples.count))
