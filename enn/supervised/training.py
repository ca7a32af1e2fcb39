"""A training run: a network's state, and everything that advances it."""

import dataclasses
import os
import pathlib
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import numpy as np
import optax
import tqdm

from enn import _checks, _sharding
from enn import loggers as enn_loggers
from enn._known_rows import RowFn
from enn.networks.base import EnnArray, Output
from enn.supervised import batches, interrupts, probes, programs, row_values
from enn.supervised.base import check_network
from enn.supervised.chunks import (
    MAX_STEPS,
    Chunk,
    ChunkReader,
    Stream,
    agree,
    fits_on_device,
)
from enn.supervised.initial import check_optimizer, initial_variables, look_at_output
from enn.supervised.loop import (
    NonFiniteError,
    PureLoss,
    Trained,
    TrainingState,
    check_loss,
    shared_loop,
    shared_with_known_rows,
    type_of,
    types_in_training,
    types_of,
)
from enn.supervised.pace import Pace
from enn.supervised.saving import Saves, check_schedule, has_position

Callback = Callable[[TrainingState, int], Any]
"""Sees the state and the step; training stops if it returns False."""


def always_train(step: int) -> bool:
    """Trains at every step."""
    del step
    return True


def _carry_on(state: TrainingState, step: int) -> None:
    """The callback of experiments without one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """One loss and the data it trains on.

    Attributes:
      pure_loss: `(params, state, batch, key) -> (loss, (state, metrics))`.
      dataset: iterator of batches.
      should_train: whether to train at a step, by its number from 1 on.
      name: what logged rows may call it.
      labels: further entries of the rows logged for it.
    """

    pure_loss: PureLoss
    dataset: Iterator[Any]
    should_train: Callable[[int], bool] = always_train
    name: str = "loss"
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def of_run(name: str) -> Any:
    """Returns an attribute of experiments that their training run, `_run`, holds.

    It is `Any`, for type checkers to take the type that the class declares.
    """
    return property(
        lambda experiment: getattr(experiment._run, name),
        lambda experiment, value: setattr(experiment._run, name, value),
    )


class TrainingRun:
    """What every experiment has: a network in training, its data, rows and saves.

    Attributes:
      enn: the network.
      state: parameters, network state and optimiser state.
      step: number of steps trained.
      rng: sequence of random keys.
      logger: where rows go.
      mesh: the devices that share the work; None for one.
      trainers: the losses and what they train on.

    Args:
      enn: the network.
      trainers: losses with their data; the first one's data initialises the network.
      optimizer: any optax transformation.
      seed: seed of the sequence of keys.
      logger: where rows go; by default they are printed.
      train_log_freq: log metrics every so many steps; 0 or None for never.
      eval_log_freq: evaluate every so many steps; 0 or None for never.
      eval_datasets: the data that `evaluate` uses, by name.
      evaluate: returns the rows to log for the current state of this run; None if
        there is nothing to evaluate.
      init_x: inputs to initialise with, in place of a first batch.
      mesh: the devices that share the work.
      init_params: parameters to start from, in place of those of `enn.init`.
      init_state: network state to start from, likewise.
      callback: called with the state and the step; None for never.
      callback_every: call it every so many steps.
    """

    def __init__(
        self,
        enn: EnnArray,
        trainers: Sequence[Trainer],
        optimizer: optax.GradientTransformation,
        *,
        seed: int,
        logger: enn_loggers.Logger | None,
        train_log_freq: int | None,
        eval_log_freq: int | None,
        eval_datasets: Mapping[str, Iterator[Any]],
        evaluate: Callable[["TrainingRun"], Iterable[Mapping[str, Any]]] | None,
        init_x: Any,
        mesh: jax.sharding.Mesh | None,
        init_params: hk.Params | None,
        init_state: hk.State | None,
        callback: Callback | None,
        callback_every: int,
    ):
        check_network(enn)
        check_optimizer(optimizer)
        if init_x is not None:
            _checks.arrays("init_x", init_x)
        self.enn = enn
        self.trainers = tuple(trainers)
        self.mesh = _sharding.check_mesh(mesh)
        self.rng = hk.PRNGSequence(seed)
        self.step = 0
        self._multi_process = self.mesh is not None and self.mesh.is_multi_process
        self._is_silent = self._multi_process and jax.process_index() > 0
        self.logger = logger or enn_loggers.make_default_logger("experiment")
        if self._is_silent:
            self.logger = enn_loggers.NullLogger()
        self._evaluate = evaluate
        self._train_log_freq = log_freq("train_log_freq", train_log_freq)
        eval_log_freq = log_freq("eval_log_freq", eval_log_freq)
        self._eval_freq = eval_log_freq if evaluate is not None else None
        _checks.positive_int("callback_every", callback_every)
        self._callback = callback or _carry_on
        self._callback_freq = callback_every if callback is not None else None

        first_batch = (
            batches.first_batch(trainers[0].dataset) if init_x is None else None
        )
        # Batch norm starts from the statistics of the batch, of all its rows.
        first_batch = _sharding.fetch(
            self.mesh, _sharding.put_rows(self.mesh, first_batch)
        )
        inputs = first_batch.x if first_batch is not None else init_x
        index = enn.indexer(next(self.rng))
        params, network_state = initial_variables(
            enn, next(self.rng), inputs, index, init_params, init_state
        )
        state = TrainingState(params, network_state, optimizer.init(params))
        if self.mesh is not None:
            self._set_key(_sharding.untyped(self._key()))
            state, inputs, index = _sharding.untyped((state, inputs, index))
        self.state = _sharding.put_members(self.mesh, state, enn.indexer)
        self._optimizer = optimizer
        self._inputs, self._initial_types = _shapes_of((inputs, self.state))
        unrolled = look_at_output(enn, *state[:2], inputs, index)
        step_bytes = 0
        losses, streams = [], []
        for i, trainer in enumerate(trainers):
            sample = getattr(trainer.dataset, "data", None if i else first_batch)
            loss, values = trainer.pure_loss, None
            if sample is not None:
                num_bytes, asked = self._check_loss(loss, sample)
                step_bytes += num_bytes
                if self.mesh is None and fits_on_device(trainer.dataset):
                    fixed, values = row_values.of_functions(asked, trainer.dataset)
                    if fixed:
                        loss = shared_with_known_rows(loss, fixed)
            losses.append(loss)
            always = trainer.should_train is always_train
            is_active = None if always else trainer.should_train
            streams.append(Stream(trainer.dataset, is_active, values))

        self.loop = shared_loop(
            tuple(losses),
            optimizer,
            unrolled,
            self.mesh,
            self.mesh and _shardings(self.state),
        )
        self._reader = ChunkReader(
            streams,
            1 if unrolled else MAX_STEPS,
            step_bytes,
            keeps_data=self.mesh is None,
        )
        self._pace = Pace()
        self._settled: Any = None
        self._pending: _Pending | None = None
        trained = {f"training data set {i}": t.dataset for i, t in enumerate(trainers)}
        evaluated = {f"evaluation data set {n!r}": d for n, d in eval_datasets.items()}
        called: dict[str, Any] = {}
        if has_position(callback):
            called = {"callback": callback}
        self._saves = Saves(trained | evaluated | called)

        self._predict = programs.predict(enn, self.mesh)
        self._loss = programs.loss(trainers[0].pure_loss, self.mesh)

    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the network's output at `inputs`, at the index drawn with `key`."""
        _checks.arrays("inputs", inputs)
        if self.mesh is not None:
            inputs, key = _sharding.untyped((inputs, key))
        with _sharding.on_mesh(self.mesh):
            out = self._predict(self.state, inputs, key)
        return out if self.mesh is None else _sharding.retyped(out)

    def loss(self, batch: Any, key: chex.PRNGKey) -> jax.Array:
        """Returns the (first) loss on `batch`."""
        if self.mesh is not None:
            batch, key = _sharding.untyped((batch, key))
        batch = _sharding.put_rows(self.mesh, batch)
        with _sharding.on_mesh(self.mesh):
            loss, _ = self._loss(self.state, batch, key)
        return loss if self.mesh is None else _sharding.retyped(loss)

    def save(self, path: str | os.PathLike[str], keep: int) -> None:
        """Saves; see `Experiment.save`."""
        self._write_save(self._saves.check(path, keep), keep)

    def restore(
        self, path: str | os.PathLike[str], step: int | None, data: bool
    ) -> None:
        """Restores a save; see `Experiment.restore`."""
        key, _ = self.rng.internal_state
        self.step, self.state, key = self._saves.read(
            path,
            step,
            data,
            self.state,
            types_in_training(
                self._initial_types,
                lambda params, opt: self._optimizer.update(params, opt, params)[1],
            ),
            key,
            self._check_probe,
        )
        self._set_key(key)
        if data:
            self._reader.drop_batch()

    def train(
        self,
        num_batches: int,
        progress: bool,
        save_dir: str | os.PathLike[str] | None,
        save_every: int | None,
        keep: int,
        on_nonfinite: str,
    ) -> None:
        """Trains for `num_batches` steps; see `Experiment.train`."""
        _checks.non_negative_int("num_batches", num_batches)
        _checks.one_of("on_nonfinite", on_nonfinite, ["stop", "continue"])
        check_schedule(save_dir, save_every)
        root = None if save_dir is None else self._saves.check(save_dir, keep)
        if root is not None:
            self._probe()  # Compiles it: after SIGTERM there may be no time for that.
        hidden = self._is_silent or not progress
        stops = on_nonfinite == "stop"
        last_step, saved_step = self.step + num_batches, self.step
        # Clusters send SIGTERM some seconds before they take the machine away.
        signals = [signal.SIGINT] + ([signal.SIGTERM] if root else [])
        self._pace.start()
        with (
            interrupts.deferred(*signals) as interrupt,
            tqdm.tqdm(total=num_batches, disable=hidden, unit="step") as bar,
        ):
            try:
                while self.step < last_step:
                    if interrupt.is_set() and not self._reader.holds_batch:
                        break
                    most = 1 if interrupt.is_set() else last_step - self.step
                    chunk = self._read(
                        most, self._eval_freq, self._callback_freq, save_every
                    )
                    stop = False
                    if chunk.num_steps:
                        self._dispatch(chunk, bar, stops)
                        if self._is_due(self._eval_freq):
                            self._finish(bar, stops)
                            self._write_evaluation()
                        if self._is_due(self._callback_freq):
                            self._finish(bar, stops)
                            stop = self._call_back()
                        if root is not None and self._is_due(save_every):
                            self._finish(bar, stops)
                            self._write_save(root, keep)
                            saved_step = self.step
                    if isinstance(chunk.error, KeyboardInterrupt) and not (
                        interrupt.is_set() or self._multi_process
                    ):
                        interrupt.set()
                    elif isinstance(chunk.error, StopIteration):
                        raise batches.DatasetEndedError(self.step)
                    elif chunk.error is not None:
                        raise chunk.error
                    if stop:
                        break
            finally:
                self._finish(bar, stops)
            if root is not None and self.step != saved_step:
                self._write_save(root, keep)

    def _read(self, most: int, *freqs: int | None) -> Chunk:
        """Reads at most `most` steps, up to the next multiple of a frequency."""
        until_due = [freq - self.step % freq for freq in freqs if freq]
        num_steps = min(most, self._pace.steps, *until_due)
        if types_of(self.state) != self._settled:
            num_steps = 1  # A loop needs a step that leaves all types as they were.
        chunk = self._reader.read(self.step + 1, num_steps)
        if self._multi_process:
            chunk, self._pace.steps = agree(chunk, self._pace.wanted)
        else:
            self._pace.steps = self._pace.wanted
        return chunk

    def _is_due(self, freq: int | None) -> bool:
        return bool(freq) and self.step % freq == 0

    def _dispatch(self, chunk: Chunk, bar: tqdm.tqdm, stops: bool) -> None:
        """Starts a chunk before it finishes the last one, so that no device waits."""
        start = self.state, self._key()
        trained = self.loop.run(*start, chunk)
        last = self._pending
        self._pending = _Pending(self.step + 1, chunk, start, trained)
        types = types_of(trained.state)
        if types == types_of(self.state):
            self._settled = types
        self.state, self.step = trained.state, self.step + chunk.num_steps
        self._set_key(trained.key)
        if last is not None:
            self._write_rows(last, bar, stops)
        self._pace.note(chunk.num_steps)

    def _finish(self, bar: tqdm.tqdm, stops: bool) -> None:
        """Waits for the chunk that is running, if any, and writes its rows."""
        if self._pending is not None:
            last, self._pending = self._pending, None
            self._write_rows(last, bar, stops)

    def _write_rows(self, pending: "_Pending", bar: tqdm.tqdm, stops: bool) -> None:
        """Writes the rows of a chunk.

        Raises:
          NonFiniteError: if `stops` and a step was not finite, after rolling back to
            the state before that step.
        """
        all_metrics, finite = jax.device_get(
            (pending.trained.metrics, pending.trained.finite)
        )
        num_steps, error = pending.chunk.num_steps, None
        if stops and not finite:
            num_steps, self.state, key, reason = self.loop.run_while_finite(
                *pending.start, pending.chunk
            )
            self._set_key(key)
            self.step = pending.first_step + num_steps - 1
            self._pending = None
            self._reader.drop_batch()
            error = NonFiniteError(self.step + 1, reason)
        all_metrics = [
            enn_loggers.plain({name: m[name][:num_steps] for name in m})
            for m in all_metrics
        ]
        for i in range(num_steps):
            step = pending.first_step + i
            if not self._train_log_freq or step % self._train_log_freq:
                continue
            for trainer, metrics, slots in zip(
                self.trainers, all_metrics, pending.chunk.slots, strict=True
            ):
                if slots is None or slots[i] >= 0:
                    row = {name: values[i] for name, values in metrics.items()}
                    row |= {"dataset": "train", "step": step, "sgd": True}
                    self.logger.write({**row, **trainer.labels})
        bar.update(num_steps)
        if error is not None:
            raise error

    def _write_evaluation(self) -> None:
        for row in self._evaluate(self) if self._evaluate else ():
            row = {"step": self.step, "sgd": False, **row}
            self.logger.write(enn_loggers.plain(row))

    def _call_back(self) -> bool:
        """Returns whether the callback asks to stop."""
        answer = np.asarray(self._callback(self.state, self.step))
        return answer.dtype == bool and not answer.all()

    def _write_save(self, root: pathlib.Path, keep: int) -> None:
        if self._reader.holds_batch:
            raise ValueError("A batch was pulled but not trained: call train first.")
        self._saves.write(root, self.step, self.state, self._key(), self._probe(), keep)

    def _probe(self) -> dict[str, Any] | None:
        params, state, _ = self.state
        return probes.record_or_warn(self.enn, params, state, self._inputs, self.mesh)

    def _check_probe(self, probe: Any, state: TrainingState) -> None:
        inputs = probes.make_inputs(probe, self._inputs)
        probes.check(probe, self.enn, *state[:2], inputs, self.mesh)

    def _key(self) -> chex.PRNGKey:
        key, reserved = self.rng.internal_state
        if reserved:
            raise ValueError(
                "experiment.rng holds keys reserved ahead; training and saving need "
                "a sequence without reserved ones."
            )
        return key

    def _set_key(self, key: chex.PRNGKey) -> None:
        self.rng.replace_internal_state((key, ()))

    def _check_loss(self, pure_loss: PureLoss, batch: Any) -> tuple[int, list[RowFn]]:
        """Returns what `check_loss` does."""
        key, _ = self.rng.internal_state
        with _sharding.on_mesh(self.mesh):
            return check_loss(pure_loss, self.state, batch, key)


@dataclasses.dataclass
class _Pending:
    """A dispatched chunk whose results may not be ready yet.

    Attributes:
      first_step: number of its first step.
      chunk: what it trains on.
      start: state and key before it.
      trained: what comes out of it.
    """

    first_step: int
    chunk: Chunk
    start: tuple[TrainingState, chex.PRNGKey]
    trained: Trained


def _shardings(tree: Any) -> tuple[Any, tuple[jax.sharding.Sharding, ...]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaf.sharding for leaf in leaves)


def _shapes_of(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), type_of(leaf)), tree
    )


def log_freq(name: str, freq: int | None) -> int | None:
    """Returns a frequency of logging, or None for never.

    Raises:
      ValueError: unless it is an integer >= 0 or None.
    """
    return _checks.positive_int(name, freq) if freq else None
