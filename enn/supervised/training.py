"""The training loop: many steps a dispatch, with the result of one at a time."""

import abc
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import tqdm

from enn import _checks, _sharding, base
from enn import loggers as enn_loggers
from enn.datasets.base import ArrayBatch
from enn.networks.base import EnnArray, EnnNoState, Output
from enn.supervised import processes
from enn.supervised.base import BaseExperiment
from enn.supervised.chunks import MAX_STEPS, Chunk, ChunkReader, Stream

_SECONDS_PER_DISPATCH = 0.5

PureLoss = Callable[[hk.Params, hk.State, Any, chex.PRNGKey], base.LossOutput]


class TrainingState(NamedTuple):
    """All that training changes, but for the random keys and the data."""

    params: hk.Params
    network_state: hk.State
    opt_state: optax.OptState


def always_train(step: int) -> bool:
    """Trains at every step."""
    del step
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """One loss and the data it trains on.

    Attributes:
      pure_loss: `(params, state, batch, key) -> (loss, (state, metrics))`.
      dataset: iterator of batches.
      should_train: whether to train at a step, by its number from 1 on.
      name: what logged rows may call it.
    """

    pure_loss: PureLoss
    dataset: Iterator[Any]
    should_train: Callable[[int], bool] = always_train
    name: str = "loss"


class TrainingExperiment(BaseExperiment):
    """A network, its training state and the loop that trains it.

    Every update draws the next key of `rng` and the next batch of its data. Many
    updates run in one dispatch, with the same keys in the same order, the same
    logged rows and the same parameters as one at a time.

    A `jax.sharding.Mesh` of devices trains with the result of one device. Its axes are
    `data`, over which the rows of every batch are sharded, for training and for
    evaluation, or `index`, over which the members of an ensemble and the epistemic
    indices are, or both. All else is replicated, and members are too where their
    number does not divide over `index`. What does not depend on the index is computed
    by every device along `index`.

    A mesh may span the devices of several processes, joined by
    `jax.distributed.initialize()`, which all run the same script. Then the data sets
    of each process give the rows of its own devices, as many as those of the others;
    a batch is what all give together, and `data_index` must tell rows of different
    processes apart. So it is for `loss`, while `predict` and `init_x` take the same
    inputs in every process. Process 0 alone writes rows, whatever the logger, and
    shows progress. An error of the data of one process stops all of them after the
    same step.

    Attributes:
      enn: the network.
      rng: sequence of random keys.
      state: parameters, network state and optimiser state.
      step: number of steps trained.
      logger: where rows go.
      mesh: the devices that share the work; None for one.
    """

    def __init__(
        self,
        enn: EnnArray,
        trainers: Sequence[Trainer],
        optimizer: optax.GradientTransformation,
        seed: int,
        logger: enn_loggers.Logger | None,
        train_log_freq: int | None,
        eval_log_freq: int | None,
        init_x: Any,
        mesh: jax.sharding.Mesh | None,
    ):
        super().__init__(dataset=trainers[0].dataset)
        _check_enn(enn)
        self.enn = enn
        self.mesh = _sharding.check_mesh(mesh)
        self.rng = hk.PRNGSequence(seed)
        self.step = 0
        self._multi_process = self.mesh is not None and self.mesh.is_multi_process
        self._is_silent = self._multi_process and jax.process_index() > 0
        self.logger = logger or enn_loggers.make_default_logger(
            "experiment", time_delta=0
        )
        if self._is_silent:
            self.logger = enn_loggers.NullLogger()
        self._trainers = tuple(trainers)
        self._train_log_freq = _log_freq("train_log_freq", train_log_freq)
        self._eval_log_freq = _log_freq("eval_log_freq", eval_log_freq)
        first_batch = next(self.dataset) if init_x is None else None
        # Batch norm starts from the statistics of the batch, of all its rows.
        first_batch = _sharding.fetch(
            self.mesh, _sharding.put_rows(self.mesh, first_batch)
        )
        inputs = first_batch.x if first_batch is not None else init_x
        index = enn.indexer(next(self.rng))
        params, network_state = enn.init(next(self.rng), inputs, index)
        self.state = _sharding.put_members(
            self.mesh,
            TrainingState(params, network_state, optimizer.init(params)),
            enn.indexer,
        )
        for i, trainer in enumerate(self._trainers):
            sample = getattr(trainer.dataset, "data", None if i else first_batch)
            if sample is not None:
                self._check_loss(trainer.pure_loss, sample)

        self._train_chunk = _make_train_chunk(
            [trainer.pure_loss for trainer in self._trainers],
            optimizer,
            self._shardings(),
        )
        self._reader = ChunkReader(
            [
                Stream(
                    t.dataset,
                    None if t.should_train is always_train else t.should_train,
                )
                for t in self._trainers
            ]
        )
        self._steps_per_dispatch = 1

        compiled = functools.partial(
            jax.jit, out_shardings=_sharding.replicated(self.mesh)
        )

        @compiled
        def predict(state: TrainingState, inputs: Any, key: chex.PRNGKey) -> Output:
            index = enn.indexer(key)
            return enn.apply(state.params, state.network_state, inputs, index)[0]

        @compiled
        def loss(state: TrainingState, batch: Any, key: chex.PRNGKey) -> chex.Array:
            pure_loss = self._trainers[0].pure_loss
            return pure_loss(state.params, state.network_state, batch, key)[0]

        self._predict, self._loss = predict, loss

    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the network's output at `inputs`, at the index drawn with `key`."""
        with _sharding.on_mesh(self.mesh):
            return self._predict(self.state, inputs, key)

    def loss(self, batch: Any, key: chex.PRNGKey) -> chex.Array:
        """Returns the (first) loss on `batch`."""
        batch = _sharding.put_rows(self.mesh, batch)
        with _sharding.on_mesh(self.mesh):
            return self._loss(self.state, batch, key)

    def train(self, num_batches: int, progress: bool = False) -> None:
        """Trains for `num_batches` steps.

        Args:
          num_batches: number of steps.
          progress: whether to show a progress bar.

        Raises:
          ValueError: if `num_batches` is negative.
          StopIteration: if a training data set ends. This and any other error of the
            data is raised after every complete batch has trained: `state`, `step`
            and the logged rows show exactly the steps done.
        """
        if num_batches < 0:
            raise ValueError(f"num_batches must be >= 0, got {num_batches}.")
        hidden = self._is_silent or not progress
        with tqdm.tqdm(total=num_batches, disable=hidden, unit="step") as bar:
            running: _Running | None = None
            try:
                for chunk in self._chunks(num_batches):
                    if chunk.num_steps:
                        finished, running = running, self._dispatch(chunk)
                        self._log(finished, bar)
                        if self._evaluates_at(self.step):
                            finished, running = running, None
                            self._log(finished, bar)
                            self._evaluate()
                    if isinstance(chunk.error, StopIteration):
                        raise _DatasetEnded(self.step)
                    if chunk.error is not None:
                        raise chunk.error
            finally:
                self._log(running, bar)

    def _chunks(self, num_batches: int) -> Iterator[Chunk]:
        """Reads what to train on, as many steps at a time as are worth it."""
        last_step = self.step + num_batches
        gap = min(num_batches, MAX_STEPS, self._eval_gap(0))
        capacity = 2 ** math.ceil(math.log2(max(gap, 1)))
        started, previous_steps = time.monotonic(), 0
        pace = self._steps_per_dispatch
        while self.step < last_step:
            num_steps = min(last_step - self.step, self._steps_per_dispatch)
            num_steps = int(min(num_steps, self._eval_gap(self.step)))
            chunk = self._reader.read(self.step + 1, num_steps, capacity)
            if self._multi_process:
                chunk, self._steps_per_dispatch = processes.agree(chunk, pace)
            yield chunk
            # Dispatches run behind: by now the previous one has finished.
            now = time.monotonic()
            if previous_steps:
                rate = previous_steps / (now - started)
                pace = int(
                    min(
                        max(rate * _SECONDS_PER_DISPATCH, 1),
                        8 * self._steps_per_dispatch,
                        MAX_STEPS,
                    )
                )
                if not self._multi_process:
                    self._steps_per_dispatch = pace
            started, previous_steps = now, chunk.num_steps

    def _dispatch(self, chunk: Chunk) -> "_Running":
        key, reserved = self.rng.internal_state
        if reserved:
            raise ValueError(
                "experiment.rng holds keys reserved ahead; train takes its keys from "
                "a sequence without reserved ones."
            )
        batches = [_sharding.put_rows(self.mesh, b, axis=1) for b in chunk.batches]
        with _sharding.on_mesh(self.mesh):
            self.state, key, metrics = self._train_chunk(
                self.state, key, batches, chunk.slots, chunk.num_steps
            )
        self.rng.replace_internal_state((key, ()))
        first_step = self.step + 1
        self.step += chunk.num_steps
        return _Running(first_step, chunk, metrics)

    def _log(self, running: "_Running | None", bar: tqdm.tqdm) -> None:
        """Waits for a dispatch to finish and writes its rows."""
        if running is None:
            return
        all_metrics = jax.device_get(running.metrics)
        for i in range(running.chunk.num_steps):
            step = running.first_step + i
            if not self._train_log_freq or step % self._train_log_freq:
                continue
            for trainer, metrics, slots in zip(
                self._trainers, all_metrics, running.chunk.slots, strict=True
            ):
                if slots is None or slots[i] >= 0:
                    row = {name: values[i] for name, values in metrics.items()}
                    row |= {"dataset": "train", "step": step, "sgd": True}
                    self.logger.write(row | self._labels(trainer))
        bar.update(running.chunk.num_steps)

    def _shardings(self) -> Any:
        """What `_train_chunk` returns lies where it lay before, the rest everywhere."""
        everywhere = _sharding.replicated(self.mesh)
        if everywhere is None:
            return None
        state = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return state, everywhere, everywhere

    def _labels(self, trainer: Trainer) -> dict[str, Any]:
        """Further entries of the rows logged for a trainer."""
        del trainer
        return {}

    @abc.abstractmethod
    def _has_evaluation(self) -> bool:
        """Whether there is anything to evaluate."""

    @abc.abstractmethod
    def _evaluate(self) -> None:
        """Evaluates the current state and writes the rows."""

    def _eval_gap(self, step: int) -> int | float:
        """Number of steps from `step` to the next evaluation."""
        if not self._eval_log_freq or not self._has_evaluation():
            return math.inf
        return self._eval_log_freq - step % self._eval_log_freq

    def _evaluates_at(self, step: int) -> bool:
        return self._eval_gap(step) == self._eval_log_freq

    def _check_loss(self, pure_loss: PureLoss, batch: Any) -> None:
        """Traces the loss once, so that bad data shows before training starts.

        Labels stay concrete in the trace, which lets a loss look at their values.
        """

        def traced(state: TrainingState, batch: Any, key: chex.PRNGKey) -> Any:
            if isinstance(batch, ArrayBatch):
                batch = dataclasses.replace(batch, y=labels)
            return pure_loss(state.params, state.network_state, batch, key)

        labels = getattr(batch, "y", None)
        key, _ = self.rng.internal_state
        loss, (network_state, _) = jax.eval_shape(traced, self.state, batch, key)
        if loss.shape != ():
            raise ValueError(
                f"loss_fn must return a scalar loss, got shape {list(loss.shape)}."
            )
        expected = jax.tree.structure(self.state.network_state)
        if jax.tree.structure(network_state) != expected:
            raise ValueError(
                "loss_fn must return network state of the structure that enn.init "
                f"gave, {expected}; got {jax.tree.structure(network_state)}."
            )


@dataclasses.dataclass
class _Running:
    """A dispatched chunk whose metrics may not be there yet."""

    first_step: int
    chunk: Chunk
    metrics: Any


class _DatasetEnded(StopIteration):
    def __init__(self, step: int):
        super().__init__(
            f"A training data set ended after step {step}. Training data must be "
            "endless, such as enn.utils.make_batch_iterator."
        )


def _make_train_chunk(
    losses: Sequence[PureLoss],
    optimizer: optax.GradientTransformation,
    out_shardings: Any,
) -> Callable[..., Any]:
    """Returns the compiled function that trains on a chunk."""
    # Each has its own jit so that finding the metrics' shapes below traces it once.
    updates = [jax.jit(functools.partial(_update, loss, optimizer)) for loss in losses]

    @functools.partial(jax.jit, out_shardings=out_shardings)
    def train_chunk(
        state: TrainingState,
        key: chex.PRNGKey,
        batches: list[Any],
        slots: list[Any],
        num_steps: int,
    ) -> tuple[TrainingState, chex.PRNGKey, list[dict[str, chex.Array]]]:
        def step(i: chex.Array, carry: Any) -> Any:
            state, key, metrics = carry
            metrics = list(metrics)
            for t, update in enumerate(updates):
                if batches[t] is None:
                    continue
                slot = i if slots[t] is None else slots[t][i]
                train = functools.partial(_train_once, update, batches[t], slot, i)
                operands = (state, key, metrics[t])
                if slots[t] is not None:
                    state, key, metrics[t] = jax.lax.cond(
                        slot >= 0, train, lambda *unchanged: unchanged, *operands
                    )
                else:
                    state, key, metrics[t] = train(*operands)
            return state, key, metrics

        metrics = [
            {} if stacked is None else _metrics_buffer(update, state, stacked, key)
            for update, stacked in zip(updates, batches, strict=True)
        ]
        return jax.lax.fori_loop(0, num_steps, step, (state, key, metrics))

    return train_chunk


def _train_once(
    update: Callable[..., Any],
    batches: Any,
    slot: chex.Array,
    step: chex.Array,
    state: TrainingState,
    key: chex.PRNGKey,
    metrics: dict[str, jax.Array],
) -> tuple[TrainingState, chex.PRNGKey, dict[str, jax.Array]]:
    key, subkey = jax.random.split(key)
    state, new = update(state, jax.tree.map(lambda leaf: leaf[slot], batches), subkey)
    return state, key, {k: metrics[k].at[step].set(new[k]) for k in metrics}


def _metrics_buffer(
    update: Callable[..., Any], state: TrainingState, batches: Any, key: chex.PRNGKey
) -> dict[str, chex.Array]:
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    capacity = len(jax.tree.leaves(batches)[0])
    _, metrics = jax.eval_shape(update, state, batch, key)
    return {
        name: jnp.zeros((capacity, *value.shape), value.dtype)
        for name, value in metrics.items()
    }


def _update(
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


def next_eval_batch(name: str, dataset: Iterator[Any]) -> Any:
    """Returns the next batch of an evaluation data set, which must not end."""
    try:
        return next(dataset)
    except StopIteration:
        raise RuntimeError(
            f"The evaluation data set {name!r} has ended. Evaluation data must be "
            "endless, such as itertools.cycle of its batches."
        ) from None


def _check_enn(enn: Any) -> None:
    if isinstance(enn, EnnNoState):
        raise TypeError(
            "enn is a network without state: give the experiment "
            "enn.networks.wrap_enn_no_state_as_enn(enn)."
        )
    if not all(callable(getattr(enn, f, None)) for f in ("apply", "init", "indexer")):
        raise TypeError(
            "enn must be an enn.base.EpistemicNetwork, with functions apply, init and "
            f"indexer; got {type(enn).__name__}."
        )


def _log_freq(name: str, freq: int | None) -> int | None:
    return _checks.positive_int(name, freq) if freq else None
