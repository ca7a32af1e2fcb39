"""Many training steps in one dispatch, with the numbers of one step at a time."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import _known_rows, _sharding, base
from enn.datasets.base import ArrayBatch
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray
from enn.supervised.chunks import Chunk
from enn.supervised.programs import shared

PureLoss = Callable[[hk.Params, hk.State, Any, chex.PRNGKey], base.LossOutput]


class TrainingState(NamedTuple):
    """All that training changes, except for the random keys and the data."""

    params: hk.Params
    network_state: hk.State
    opt_state: optax.OptState


class NonFiniteError(FloatingPointError):
    """A step had a loss, or made parameters, that are NaN or infinite.

    >>> import numpy as np
    >>> from enn import networks, supervised
    >>> enn = networks.scale_enn_output(networks.MLPDropoutENN([1]), np.nan)
    >>> test = supervised.make_test_experiment(regression=True)
    >>> test.experiment_ctor(enn).train(1)
    Traceback (most recent call last):
        ...
    enn.supervised.loop.NonFiniteError: Step 1 has a loss that is NaN or infinite. ...

    Attributes:
      step: the number of that step. The experiment is at the step before it, with the
        last good parameters.
    """

    def __init__(self, step: int, reason: str):
        super().__init__(
            f"Step {step} {reason}. The experiment keeps its state after step "
            f"{step - 1}; train(..., on_nonfinite='continue') carries on regardless."
        )
        self.step = step


class Trained(NamedTuple):
    """What a dispatch of training steps gives.

    Attributes:
      state: the state after the last step.
      key: the random key after it.
      metrics: for every loss, its metrics by name, each `[capacity, ...]`; only the
        entries of steps that trained on this loss are filled, the others are 0.
      finite: whether all losses, and the parameters after the last step, are finite.
    """

    state: TrainingState
    key: chex.PRNGKey
    metrics: list[dict[str, Any]]
    finite: chex.Array


def check_over_indices(loss_fn: LossFnArray) -> None:
    """Raises TypeError for a loss at a single index."""
    if next(iter(inspect.signature(loss_fn).parameters), "") == "apply":
        raise TypeError(
            f"{loss_fn!r} is a loss at a single index: give the experiment "
            "enn.losses.average_single_index_loss of it."
        )


@shared
def purify(enn: EnnArray, loss_fn: LossFnArray) -> PureLoss:
    """Returns the loss of `enn` as a function `(params, state, batch, key)`.

    Raises:
      TypeError: for a loss at a single index, and for a class.
    """
    if isinstance(loss_fn, type):
        raise TypeError(
            f"loss_fn must be a loss, got the class {loss_fn.__name__}: call it first."
        )
    if next(iter(inspect.signature(loss_fn).parameters), "") == "apply":
        raise TypeError(
            f"{loss_fn!r} is a loss at a single index: give the experiment "
            "enn.losses.average_single_index_loss of it."
        )

    def pure_loss(
        params: hk.Params, state: hk.State, batch: Any, key: chex.PRNGKey
    ) -> base.LossOutput:
        return loss_fn(enn, params, state, batch, key)

    return pure_loss


def check_loss(
    pure_loss: PureLoss, state: TrainingState, batch: Any, key: chex.PRNGKey
) -> tuple[int, list[_known_rows.RowFn]]:
    """Traces the loss once, so that bad data shows before training starts.

    Labels stay concrete in the trace, which lets a loss look at their values.

    Returns:
      The number of bytes of the metrics of a step, and the functions whose values at
      the inputs of a batch the network would take if they were known.
    """
    fixed: list[_known_rows.RowFn] = []

    def traced(state: TrainingState, batch: Any, key: chex.PRNGKey) -> Any:
        if isinstance(batch, ArrayBatch):
            batch = dataclasses.replace(batch, y=labels)
        with _known_rows.known_at(getattr(batch, "x", None), {}) as asked:
            out = pure_loss(state.params, state.network_state, batch, key)
        fixed.extend(asked)
        return out

    labels = getattr(batch, "y", None)
    loss, (network_state, metrics) = jax.eval_shape(traced, state, batch, key)
    if loss.shape != ():
        raise ValueError(
            f"loss_fn must return a scalar loss, got shape {list(loss.shape)}."
        )
    expected = jax.tree.structure(state.network_state)
    if jax.tree.structure(network_state) != expected:
        raise ValueError(
            "loss_fn must return network state of the structure that enn.init "
            f"gave, {expected}; got {jax.tree.structure(network_state)}."
        )
    num_bytes = sum(m.size * m.dtype.itemsize for m in jax.tree.leaves(metrics))
    return num_bytes, fixed


def with_known_rows(
    pure_loss: PureLoss, fixed: tuple[_known_rows.RowFn, ...]
) -> PureLoss:
    """Returns the loss of a pair of a batch and the values of `fixed` at its inputs."""

    def loss(
        params: hk.Params, state: hk.State, batch: Any, key: chex.PRNGKey
    ) -> base.LossOutput:
        batch, values = batch
        known = dict(zip(fixed, values, strict=True))
        with _known_rows.known_at(batch.x, known):
            return pure_loss(params, state, batch, key)

    return loss


shared_with_known_rows = shared(with_known_rows)


class TrainLoop:
    """Updates of a training state, compiled; keeps nothing between calls.

    Every update draws the next key and takes the next batch, in the order of steps
    and, within a step, of losses.

    >>> import jax, numpy as np, optax
    >>> from enn import supervised
    >>> from enn.supervised.loop import Chunk, TrainLoop
    >>> def loss(params, state, batch, key):
    ...     return ((params["w"] - batch) ** 2).mean(), (state, {})
    >>> optimizer = optax.sgd(0.5)
    >>> params = {"w": np.float32(0)}
    >>> state = supervised.TrainingState(params, {}, optimizer.init(params))
    >>> chunk = Chunk(2, batches=[np.ones([4, 8], np.float32)])
    >>> trained = TrainLoop([loss], optimizer).run(state, jax.random.key(0), chunk)
    >>> float(trained.state.params["w"])
    1.0
    >>> trained.metrics[0]["loss"].tolist()
    [1.0, 0.0, 0.0, 0.0]

    Args:
      losses: functions `(params, state, batch, key) -> (loss, (state, metrics))`.
      optimizer: any optax transformation.
      unrolled: whether each dispatch holds a single step, without a loop around it.
      mesh: the devices that share the work; None for one.
      shardings: structure of the training state, and the shardings of its leaves.
    """

    def __init__(
        self,
        losses: Sequence[PureLoss],
        optimizer: optax.GradientTransformation,
        unrolled: bool = False,
        mesh: jax.sharding.Mesh | None = None,
        shardings: Any = None,
    ):
        self._mesh = mesh
        # Results stay on the devices of their inputs, so that nothing is recompiled.
        everywhere = _sharding.replicated(mesh)
        self.compiled = jax.jit(
            functools.partial(
                train_chunk,
                # Each its own jit: finding the shapes of metrics traces it once.
                [jax.jit(functools.partial(sgd_update, f, optimizer)) for f in losses],
                unrolled,
            ),
            out_shardings=shardings
            and (jax.tree.unflatten(*shardings), everywhere, everywhere, everywhere),
        )

    def run(
        self,
        state: TrainingState,
        key: chex.PRNGKey,
        chunk: Chunk,
        first: int = 0,
        last: int | None = None,
    ) -> Trained:
        """Trains on the steps `first` to `last`, exclusive, of a chunk; all of them
        by default."""
        last = chunk.num_steps if last is None else last
        batches = chunk.batches
        if self._mesh is not None:
            state, key, batches = _sharding.untyped((state, key, batches))
        key = _sharding.put_everywhere(self._mesh, key)
        batches = [_sharding.put_rows(self._mesh, b, axis=1) for b in batches]
        with _sharding.on_mesh(self._mesh):
            args = state, key, chunk.data, batches, chunk.slots, first, last
            return Trained(*self.compiled(*args))

    def run_while_finite(
        self, state: TrainingState, key: chex.PRNGKey, chunk: Chunk
    ) -> tuple[int, TrainingState, chex.PRNGKey, str]:
        """Repeats a chunk that is not finite up to its first bad step.

        One step at a time, which takes about as long as the chunk took. A check inside
        the loop passes over all parameters: that costs every step up to 7 %.

        Returns:
          The number of good steps, the state and key after them, and what is wrong
          with the step that follows.
        """
        i, trained = 0, self.run(state, key, chunk, 0, 1)
        while trained.finite and i + 1 < chunk.num_steps:
            state, key, i = trained.state, trained.key, i + 1
            trained = self.run(state, key, chunk, i, i + 1)
        losses = [metrics["loss"][i] for metrics in trained.metrics if metrics]
        if np.isfinite(losses).all():
            return i, state, key, "made parameters that are NaN or infinite"
        return i, state, key, "has a loss that is NaN or infinite"


shared_loop = shared(TrainLoop)


def batch_of(data: Any, batches: Any, slot: chex.Array | int) -> Any:
    """Returns a batch of a chunk, of rows of `data` if it holds their numbers."""
    batch = jax.tree.map(lambda leaf: leaf[slot], batches)
    if data is None:
        return batch
    return jax.tree.map(lambda leaf: leaf.at[batch].get(mode="promise_in_bounds"), data)


def train_chunk(
    updates: Sequence[Callable[..., Any]],
    unrolled: bool,
    state: TrainingState,
    key: chex.PRNGKey,
    data: list[Any],
    batches: list[Any],
    slots: list[Any],
    first: chex.Array | int,
    last: chex.Array | int,
) -> tuple[TrainingState, chex.PRNGKey, list[dict[str, chex.Array]], chex.Array]:
    """Returns what `Trained` holds; see `TrainLoop` and `Chunk` for the arguments."""

    def step(i: chex.Array | int, carry: Any) -> Any:
        state, key, metrics = carry
        metrics = list(metrics)
        for t, update in enumerate(updates):
            if batches[t] is None:
                continue
            slot = i if slots[t] is None else slots[t][i]

            def train(
                state: TrainingState,
                key: chex.PRNGKey,
                metrics: dict[str, jax.Array],
                update: Callable[..., Any] = update,
                t: int = t,
                slot: chex.Array | int = slot,
            ) -> Any:
                key, subkey = jax.random.split(key)
                state, new = update(state, batch_of(data[t], batches[t], slot), subkey)
                return state, key, {k: metrics[k].at[i].set(new[k]) for k in metrics}

            operands = (state, key, metrics[t])
            if slots[t] is None:
                state, key, metrics[t] = train(*operands)
            else:
                skip = functools.partial(_cast, jax.eval_shape(train, *operands))
                state, key, metrics[t] = jax.lax.cond(slot >= 0, train, skip, *operands)
        return state, key, metrics

    def buffer(t: int, update: Callable[..., Any]) -> dict[str, chex.Array]:
        if batches[t] is None:
            return {}
        batch = jax.eval_shape(lambda: batch_of(data[t], batches[t], 0))
        _, metrics = jax.eval_shape(update, state, batch, key)
        capacity = len(jax.tree.leaves(batches[t])[0])
        return {
            name: jnp.zeros((capacity, *value.shape), value.dtype)
            for name, value in metrics.items()
        }

    carry = (state, key, [buffer(t, update) for t, update in enumerate(updates)])
    # An optimiser may change the types of its state in the first step.
    if unrolled or types_of(jax.eval_shape(step, first, carry)) != types_of(carry):
        carry = step(first, carry)
    else:
        carry = jax.lax.fori_loop(first, last, step, carry)
    state, key, metrics = carry
    losses = [m["loss"] for m in metrics if m]
    return state, key, metrics, all_finite((state.params, losses))


def sgd_update(
    pure_loss: PureLoss,
    optimizer: optax.GradientTransformation,
    state: TrainingState,
    batch: Any,
    key: chex.PRNGKey,
) -> tuple[TrainingState, dict[str, chex.Array]]:
    """One step of stochastic gradient descent; the loss is the one before it."""
    value_and_grad = jax.value_and_grad(pure_loss, has_aux=True)
    (loss, (network_state, metrics)), grads = value_and_grad(
        state.params, state.network_state, batch, key
    )
    network_state = jax.tree.map(
        lambda new, old: jnp.asarray(new, old.dtype), network_state, state.network_state
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainingState(params, network_state, opt_state), {**metrics, "loss": loss}


def type_of(leaf: Any) -> Any:
    """Returns the type that a leaf of the state has in training."""
    has_type = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
    return leaf.dtype if has_type else jnp.result_type(leaf)


def types_of(tree: Any) -> list[Any]:
    """Returns the types of all leaves."""
    return [type_of(leaf) for leaf in jax.tree.leaves(tree)]


def types_in_training(
    initial: TrainingState, update: Callable[[Any, Any], Any]
) -> list[TrainingState]:
    """Returns shapes and types of the state: at first, and those of training.

    An optimiser may change the types of its state in the first step.

    Args:
      initial: those of the first state.
      update: parameters and optimiser state to the next optimiser state.
    """
    states, opt_state = [initial], initial.opt_state
    for _ in range(2):
        opt_state = jax.eval_shape(update, initial.params, opt_state)
        states.append(initial._replace(opt_state=opt_state))
    return states


def _cast(like: Any, *tree: Any) -> Any:
    return jax.tree.map(
        lambda to, leaf: leaf if leaf.dtype == to.dtype else leaf.astype(to.dtype),
        like,
        tree,
    )


def all_finite(tree: Any) -> jax.Array:
    """Returns whether all numbers of all arrays are finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.array(finite, bool).all()
