"""The training loop: many steps a dispatch, with the result of one at a time."""

import abc
import bisect
import dataclasses
import functools
import inspect
import math
import os
import threading
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
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray, EnnNoState, Output
from enn.supervised import interrupts, nonfinite, processes
from enn.supervised.chunks import MAX_STEPS, Chunk, ChunkReader, Stream
from enn.supervised.resumable import ResumableExperiment

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


def purify(enn: EnnArray, loss_fn: LossFnArray) -> PureLoss:
    """Returns the loss of `enn` as a function `(params, state, batch, key)`.

    Raises:
      TypeError: for a loss at a single index.
    """
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


class TrainingExperiment(ResumableExperiment):
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

    _eval_datasets: dict[str, Iterator[Any]]

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
        for trainer in trainers:
            _check_dataset(trainer.dataset)
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
        first_batch = _first_batch(self.dataset) if init_x is None else None
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

        self._max_steps = _max_steps(enn, params, network_state, inputs, index)
        self._train_chunk = _make_train_chunk(
            [trainer.pure_loss for trainer in self._trainers],
            optimizer,
            self._max_steps,
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
        self._save_dirs = set()

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

    def train(
        self,
        num_batches: int,
        progress: bool = False,
        *,
        save_dir: str | os.PathLike[str] | None = None,
        save_every: int | None = None,
        keep: int = 3,
        on_nonfinite: str = "stop",
    ) -> None:
        """Trains for `num_batches` steps.

        Ctrl-C stops after the steps that are running, saves, and then raises
        KeyboardInterrupt; a second one stops at once and saves nothing. In a run of
        several processes every Ctrl-C is of the second kind.

        Args:
          num_batches: number of steps.
          progress: whether to show a progress bar.
          save_dir: directory to `save` in: when training ends, on Ctrl-C, and every
            `save_every` steps. Saving changes no numbers.
          save_every: save after every step that is a multiple of this.
          keep: how many saves to keep.
          on_nonfinite: what to do when a step has a loss, or makes parameters, that
            are NaN or infinite: `"stop"` there, or `"continue"`.

        Raises:
          ValueError: if an argument is out of range, or as `save` does.
          NonFiniteError: if such a step stops training. `state`, `step`, `rng` and
            the logged rows are those of the steps before it; the data have moved on.
          StopIteration: if a training data set ends. This and any other error of the
            data is raised after every complete batch has trained: `state`, `step`
            and the logged rows show exactly the steps done.
        """
        _checks.non_negative_int("num_batches", num_batches)
        hidden = self._is_silent or not progress
        _checks.one_of("on_nonfinite", on_nonfinite, ["stop", "continue"])
        stops = on_nonfinite == "stop"
        if save_every is not None:
            _checks.positive_int("save_every", save_every)
            if save_dir is None:
                raise ValueError("save_every needs save_dir, where to save.")
        root = None if save_dir is None else self._check_saves(save_dir, keep)
        saved_step = self.step
        with (
            interrupts.deferred() as interrupt,
            tqdm.tqdm(total=num_batches, disable=hidden, unit="step") as bar,
        ):
            running: _Running | None = None
            try:
                for chunk in self._chunks(num_batches, save_every, interrupt):
                    if chunk.num_steps:
                        finished, running = running, self._dispatch(chunk)
                        self._finish(finished, bar, stops)
                        saves = _gap(save_every, self.step) == save_every
                        if saves or self._evaluates_at(self.step):
                            finished, running = running, None
                            self._finish(finished, bar, stops)
                        if self._evaluates_at(self.step):
                            self._evaluate()
                        if root is not None and saves:
                            self._save(root, keep)
                            saved_step = self.step
                    if isinstance(chunk.error, StopIteration):
                        raise _DatasetEnded(self.step)
                    stopped = isinstance(chunk.error, KeyboardInterrupt)
                    if stopped and not (interrupt.is_set() or self._multi_process):
                        interrupt.set()
                    elif chunk.error is not None:
                        raise chunk.error
            except nonfinite.NonFiniteError:
                running = None
                raise
            finally:
                self._finish(running, bar, stops)
            if root is not None and self.step != saved_step:
                self._save(root, keep)

    def _chunks(
        self, num_batches: int, save_every: int | None, interrupt: threading.Event
    ) -> Iterator[Chunk]:
        """Reads what to train on, as many steps at a time as are worth it.

        An interrupt ends it, once no batch is held that was pulled.
        """
        last_step = self.step + num_batches
        gap = min(num_batches, self._max_steps, self._eval_gap(0))
        # Few different ones: each is compiled anew.
        capacity = 4 ** math.ceil(math.log(max(gap, 1), 4))
        started, previous_steps = time.monotonic(), 0
        pace = self._steps_per_dispatch
        while self.step < last_step:
            num_steps = min(last_step - self.step, self._steps_per_dispatch)
            gap = min(self._eval_gap(self.step), _gap(save_every, self.step))
            num_steps = int(min(num_steps, gap))
            if interrupt.is_set():
                if not self._reader.holds_batch:
                    break
                num_steps = 1
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
                        self._max_steps,
                    )
                )
                if not self._multi_process:
                    self._steps_per_dispatch = pace
            started, previous_steps = now, chunk.num_steps

    def _dispatch(self, chunk: Chunk) -> "_Running":
        # Where the last dispatch left it, or else each would be compiled anew.
        start = self.state, _sharding.put_everywhere(self.mesh, self._key())
        self.state, key, metrics, finite = self._run(start, chunk, chunk.num_steps)
        self._set_key(key)
        first_step = self.step + 1
        self.step += chunk.num_steps
        return _Running(first_step, chunk, start, metrics, finite)

    def _run(self, start: Any, chunk: Chunk, num_steps: int) -> Any:
        """Trains on the first steps of a chunk; returns what `_train_chunk` does."""
        batches = [_sharding.put_rows(self.mesh, b, axis=1) for b in chunk.batches]
        with _sharding.on_mesh(self.mesh):
            return self._train_chunk(*start, batches, chunk.slots, num_steps)

    def _finish(self, running: "_Running | None", bar: tqdm.tqdm, stops: bool) -> None:
        """Waits for a dispatch to finish and writes its rows.

        Raises:
          NonFiniteError: if `stops` and a step was not finite, once all is as it was
            before that step.
        """
        if running is None:
            return
        all_metrics, finite = jax.device_get((running.metrics, running.finite))
        error = self._go_back(running, all_metrics, finite) if stops else None
        num_steps = running.chunk.num_steps
        if error is not None:
            num_steps = error.step - running.first_step
        for i in range(num_steps):
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
        bar.update(num_steps)
        if error is not None:
            raise error

    def _go_back(
        self, running: "_Running", all_metrics: list[dict[str, Any]], finite: bool
    ) -> nonfinite.NonFiniteError | None:
        """Becomes what it was before the first step that is not finite.

        Looking only at what a dispatch returns, and repeating the good part of a bad
        one, keeps the loop over steps as fast as without.
        """
        losses = [metrics["loss"] for metrics in all_metrics if metrics]
        good = nonfinite.num_finite_steps(losses, running.chunk.num_steps)
        if good == running.chunk.num_steps and finite:
            return None
        run = functools.partial(self._run, running.start, running.chunk)
        reason = "has a loss that is NaN or infinite"
        # A bad parameter stays bad, but need not show in the next loss.
        first_bad = bisect.bisect_left(
            range(1, good + 1), True, key=lambda n: not run(n)[-1]
        )
        if first_bad < good:
            good, reason = first_bad, "made parameters that are NaN or infinite"
        self.state, key = run(good)[:2] if good else running.start
        self._set_key(key)
        self.step = running.first_step + good - 1
        self._reader.drop_batch()
        return nonfinite.NonFiniteError(self.step + 1, reason)

    def _datasets(self) -> dict[str, Iterator[Any]]:
        trained = {
            f"training data set {i}": trainer.dataset
            for i, trainer in enumerate(self._trainers)
        }
        evaluated = {
            f"evaluation data set {name!r}": dataset
            for name, dataset in self._eval_datasets.items()
        }
        return trained | evaluated

    def _shardings(self) -> Any:
        """What `_train_chunk` returns lies where it lay before, the rest everywhere."""
        everywhere = _sharding.replicated(self.mesh)
        if everywhere is None:
            return None
        state = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return state, everywhere, everywhere, everywhere

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
        return _gap(self._eval_log_freq if self._has_evaluation() else None, step)

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
    """A dispatched chunk whose results may not be there yet.

    Attributes:
      first_step: number of its first step.
      chunk: what it trains on.
      start: state and key before it.
      metrics: of all its steps, for every trainer.
      finite: whether its parameters are finite in the end.
    """

    first_step: int
    chunk: Chunk
    start: tuple[TrainingState, chex.PRNGKey]
    metrics: Any
    finite: Any


class _DatasetEnded(StopIteration):
    def __init__(self, step: int):
        super().__init__(
            f"A training data set ended after step {step}. Training data must be "
            "endless, such as enn.utils.make_batch_iterator."
        )


def _make_train_chunk(
    losses: Sequence[PureLoss],
    optimizer: optax.GradientTransformation,
    max_steps: int,
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
    ) -> tuple[TrainingState, chex.PRNGKey, list[dict[str, chex.Array]], chex.Array]:
        def step(i: chex.Array | int, carry: Any) -> Any:
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
        carry = (state, key, metrics)
        if max_steps == 1:
            carry = step(0, carry)
        else:
            carry = jax.lax.fori_loop(0, num_steps, step, carry)
        state, key, metrics = carry
        return state, key, metrics, nonfinite.all_finite(state.params)

    return train_chunk


def _max_steps(enn: EnnArray, *args: Any) -> int:
    """Returns how many steps a dispatch may take.

    XLA runs convolutions inside a loop up to 30 times slower on CPU: there, networks
    that have them train without a loop, one step a dispatch.
    """
    if jax.default_backend() != "cpu":
        return MAX_STEPS
    has_convolution = "conv_general_dilated" in str(jax.make_jaxpr(enn.apply)(*args))
    return 1 if has_convolution else MAX_STEPS


def _train_once(
    update: Callable[..., Any],
    batches: Any,
    slot: chex.Array | int,
    step: chex.Array | int,
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


def _check_dataset(dataset: Any) -> None:
    if not hasattr(dataset, "__next__"):
        raise TypeError(
            "dataset must be an endless iterator of batches, such as "
            "enn.utils.make_batch_iterator or itertools.cycle give; got "
            f"{type(dataset).__name__}."
        )


def _first_batch(dataset: Iterator[Any]) -> Any:
    try:
        return next(dataset)
    except StopIteration:
        raise ValueError(
            "The training data set is empty: it has no first batch."
        ) from None


def _gap(freq: int | None, step: int) -> int | float:
    """Number of steps from `step` to the next multiple of `freq`."""
    return freq - step % freq if freq else math.inf


def _log_freq(name: str, freq: int | None) -> int | None:
    return _checks.positive_int(name, freq) if freq else None
