"""Training many networks of one architecture at once, in one compiled program."""

import functools
import os
import pathlib
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import NamedSharding

from enn import _checks, _sharding, metrics
from enn import loggers as enn_loggers
from enn._known_rows import RowFn
from enn.losses.base import LossFnArray
from enn.networks import utils
from enn.networks.base import EnnArray, Output
from enn.networks.indexers import PrngIndexer
from enn.supervised import batches, interrupts, probes, row_values
from enn.supervised.batches import Data
from enn.supervised.chunks import (
    MAX_STEPS,
    Chunk,
    ChunkReader,
    Stream,
    fits_on_device,
)
from enn.supervised.loop import (
    TrainingState,
    check_loss,
    types_in_training,
    types_of,
)
from enn.supervised.many_programs import Hyper, many_programs, over_runs
from enn.supervised.pace import Pace
from enn.supervised.saving import Saves, check_schedule
from enn.supervised.training import log_freq


class ManyExperiments:
    """Trains many networks of one architecture at once: a run for each.

    Runs differ in their seeds, their hyperparameters and their data. The program is
    compiled once, with hyperparameters as its inputs, and each run has the numbers, to
    rounding, that `Experiment` gives it alone: the same keys in the same order, the
    same batches, the same logged rows.

    Hyperparameters reach the network, loss and optimiser as numbers, traced by JAX:
    learning rate, prior scale, noise or L2 scale may differ from run to run, while
    widths, numbers of members and anything else that decides shapes may not.

    >>> import jax, numpy as np, optax
    >>> from enn import losses, networks, supervised
    >>> many = supervised.ManyExperiments(
    ...     lambda hyper: networks.MLPEnsembleMatchedPrior(
    ...         [4, 1], num_ensemble=2, prior_scale=hyper["prior_scale"]
    ...     ),
    ...     lambda enn, hyper: losses.average_single_index_loss(losses.L2Loss(), 2),
    ...     lambda hyper: optax.adam(hyper["learning_rate"]),
    ...     (np.ones([3, 2]), np.zeros([3, 1])),
    ...     seeds=[0, 0, 1],
    ...     hypers={"prior_scale": [0.0, 1.0, 1.0], "learning_rate": [0.1, 0.01, 0.01]},
    ...     train_log_freq=None,
    ... )
    >>> many.train(5)
    >>> out = many.predict(np.ones([7, 2]), jax.random.key(0))  # [3 runs, 7, 1]
    >>> [bool((prior == 0).all()) for prior in out.prior]
    [True, False, False]

    A mesh of devices trains runs side by side, each on one device; without one, the
    processors of a CPU do, each a share of the runs.

    Attributes:
      num_runs: number of runs.
      state: what training changes, a named tuple of `params`, `network_state` and
        `opt_state`; every array has a leading axis of runs. May be set.
      step: number of steps trained.
      finite: whether all losses so far and the parameters of each run are finite,
        bools `[num_runs]`. A run that is not goes on by itself: it changes no other.
      logger: where rows go.

    Args:
      make_enn: returns the network for hyperparameters.
      make_loss: returns the loss for a network and hyperparameters.
      make_optimizer: returns the optimiser for hyperparameters.
      dataset: what all runs train on, as for `Experiment`: all see the same batches.
        Without a mesh, prior functions are computed once for each row of arrays in
        memory, if the values of all runs fit in 128 MiB.
      seeds: seed of the sequence of keys of each run; one seed serves all runs.
      hypers: a tree, usually a dict by name, of arrays `[num_runs, ...]`; the functions
        above get that of one run, `[...]`. May be left out where seeds or data are
        all that differs.
      datasets: one data set for each run, in place of `dataset`; the batches of all
        have the same shapes, those of arrays in memory may differ in number of rows.
      logger: where rows go; by default they are printed. Rows are those of
        `Experiment` with the entries `run`, `seed` and every hyperparameter that is a
        single number, by name.
      train_log_freq: log metrics every so many steps; 0 or None for never.
      eval_datasets: data to evaluate all runs on, by name.
      eval_metrics: functions `(logits, labels) -> scalar` by name.
      eval_enn_samples: number of indices to evaluate at.
      eval_log_freq: evaluate every so many steps; 0 or None for never.
      init_x: inputs to initialise with; by default a first batch is drawn for this,
        which is then not trained on.
      mesh: devices that share the runs, all of this process; their number divides that
        of the runs. By default one does it all.
      runs_at_once: how many runs are stepped together, as one batched operation,
        before it goes on to the next ones: few keep a small memory and stay in the
        cache of a CPU, many keep a GPU busy. By default 1 on a CPU, else all.

    Raises:
      TypeError: unless the functions give a network, a loss over indices and an
        optimiser.
      ValueError: for seeds, hyperparameters and data of different numbers of runs, for
        both or none of `dataset` and `datasets`, if runs do not divide over the mesh,
        and as `Experiment` does.
    """

    def __init__(
        self,
        make_enn: Callable[[Hyper], EnnArray],
        make_loss: Callable[[EnnArray, Hyper], LossFnArray],
        make_optimizer: Callable[[Hyper], optax.GradientTransformation],
        dataset: Data | None = None,
        *,
        seeds: int | Sequence[int] | np.ndarray = 0,
        hypers: Hyper = None,
        datasets: Sequence[Data] | None = None,
        logger: enn_loggers.Logger | None = None,
        train_log_freq: int | None = 100,
        eval_datasets: Mapping[str, Data] | None = None,
        eval_metrics: Mapping[str, metrics.MetricCalculator] | None = None,
        eval_enn_samples: int = 100,
        eval_log_freq: int | None = 100,
        init_x: chex.Array | None = None,
        mesh: jax.sharding.Mesh | None = None,
        runs_at_once: int | None = None,
    ):
        self.hypers = jax.tree.map(jnp.asarray, hypers, is_leaf=_is_list)
        self.num_runs, self._seeds = _seeds_of_runs(seeds, self.hypers, datasets)
        self._make_enn = make_enn
        self.mesh = _sharding.check_mesh(mesh)
        if self.mesh is not None and (
            self.mesh.is_multi_process or self.num_runs % self.mesh.size
        ):
            raise ValueError(
                f"The {self.num_runs} runs must divide over the {self.mesh.size} "
                "devices of the mesh, which must all be of this process."
            )
        self.logger = logger or enn_loggers.make_default_logger("experiments")
        self._train_log_freq = log_freq("train_log_freq", train_log_freq)
        eval_log_freq = log_freq("eval_log_freq", eval_log_freq)
        self._eval_freq = eval_log_freq if eval_datasets and eval_metrics else None
        self._eval_metrics = dict(eval_metrics or {})
        _checks.positive_int("eval_enn_samples", eval_enn_samples)
        self._eval_enn_samples = eval_enn_samples
        self._eval_datasets = {
            name: batches.as_batches(data)
            for name, data in (eval_datasets or {}).items()
        }
        if runs_at_once is None:
            on_cpu = jax.default_backend() == "cpu"
            runs_at_once = 1 if on_cpu else self.num_runs
        else:
            _checks.positive_int("runs_at_once", runs_at_once)
        self._program = many_programs(
            make_enn, make_loss, make_optimizer, self.mesh, runs_at_once
        )
        self._has_own_data = datasets is not None
        own, self._data = _data_of_runs(dataset, datasets)
        self._start(init_x)
        self._pace = Pace()
        trained = {f"training data set {i}": data for i, data in enumerate(own)}
        evaluated = {
            f"evaluation data set {n!r}": d for n, d in self._eval_datasets.items()
        }
        self._saves = Saves(trained | evaluated)

    def _start(self, init_x: Any) -> None:
        """Makes the first state of every run, and looks at the loss of the first."""
        own = self._has_own_data and init_x is None
        inputs = batches.first_batch(self._data).x if init_x is None else init_x
        keys = [hk.PRNGSequence(seed).internal_state[0] for seed in self._seeds]
        self.hypers, keys = self._put((self.hypers, jnp.stack(keys)))
        self.state, self._keys = self._program.init(self.hypers, keys, inputs, own=own)
        self._initial_types = jax.eval_shape(lambda: self.state)
        self._settled: Any = None
        self._inputs = jax.tree.map(lambda leaf: leaf[0], inputs) if own else inputs
        self.step, self.finite = 0, np.ones(self.num_runs, bool)
        _, pure_loss, _ = self._program.parts(_slice(self.hypers, 0))
        sample = getattr(self._data, "data", None)
        num_bytes, values = 0, None
        self._known: tuple[int, ...] = ()
        if sample is not None:
            first = _slice(self.state, 0)
            num_bytes, asked = check_loss(pure_loss, first, sample, keys[0])
            if self.mesh is None and fits_on_device(self._data):
                values = self._row_values(asked)
        self._reader = ChunkReader(
            [Stream(self._data, row_values=values)],
            MAX_STEPS,
            num_bytes * self.num_runs,
            keeps_data=self.mesh is None,
        )

    def _row_values(self, asked: Sequence[RowFn]) -> Callable[[Any], Any] | None:
        """Returns what makes the values of those of the functions that fit."""
        dataset: Any = self._data
        own, num_runs = self._has_own_data, self.num_runs
        size = dataset.batch_size // (num_runs if own else 1)
        num_values = len(dataset.data.y) * (1 if own else num_runs)
        inputs = row_values.batch_inputs(dataset.data, size)
        self._known = row_values.fitting(asked, inputs, num_values)
        if not self._known:
            return None

        def make(data: Any) -> row_values.RowValues:
            num_rows = len(data.y)  # With room for more.
            return row_values.RowValues(
                lambda rows: self._program.row_values(
                    self.hypers, self.state, self._keys, data, rows, known=self._known
                ),
                size,
                num_rows,
                [0 if own else run * num_rows for run in range(num_runs)],
            )

        return make

    def train(
        self,
        num_batches: int,
        progress: bool = False,
        *,
        save_dir: str | os.PathLike[str] | None = None,
        save_every: int | None = None,
        keep: int = 3,
    ) -> None:
        """Trains every run for `num_batches` steps.

        Ctrl-C stops after the steps that are running, saves, and then raises
        KeyboardInterrupt. Runs with a loss or parameters that are not finite are told
        by a warning at the end, and by `finite`.

        Args:
          num_batches: number of steps.
          progress: whether to show a progress bar.
          save_dir: directory to `save` in: when training ends, on Ctrl-C, and every
            `save_every` steps.
          save_every: save after every step that is a multiple of this.
          keep: how many saves to keep.

        Raises:
          ValueError: if an argument is out of range, or as `save` does.
          StopIteration: if a training data set ends, after the steps before.
        """
        _checks.non_negative_int("num_batches", num_batches)
        check_schedule(save_dir, save_every)
        root = None if save_dir is None else self._saves.check(save_dir, keep)
        last_step, saved_step = self.step + num_batches, self.step
        signals = [signal.SIGINT] + ([signal.SIGTERM] if root else [])
        self._pace.start()
        with (
            interrupts.deferred(*signals) as interrupt,
            tqdm.tqdm(total=num_batches, disable=not progress, unit="step") as bar,
        ):
            while self.step < last_step and not interrupt.is_set():
                freqs = (self._eval_freq, save_every)
                until_due = [freq - self.step % freq for freq in freqs if freq]
                chunk = self._read(min([last_step - self.step, *until_due]))
                if chunk.num_steps:
                    self._train_on(chunk)
                    bar.update(chunk.num_steps)
                    if self._is_due(self._eval_freq):
                        self._evaluate()
                    if root is not None and self._is_due(save_every):
                        self._write_save(root, keep)
                        saved_step = self.step
                if isinstance(chunk.error, KeyboardInterrupt):
                    interrupt.set()
                elif isinstance(chunk.error, StopIteration):
                    raise batches.DatasetEndedError(self.step)
                elif chunk.error is not None:
                    raise chunk.error
            if root is not None and self.step != saved_step:
                self._write_save(root, keep)
        if not self.finite.all():
            warnings.warn(
                f"Runs {np.flatnonzero(~self.finite).tolist()} have a loss or "
                "parameters that are NaN or infinite.",
                RuntimeWarning,
                stacklevel=2,
            )

    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the output of every run at `inputs`, `[num_runs, batch, ...]`.

        Run r draws its index with `key`, as `Experiment.predict` does.
        """
        keys = self._put(jnp.stack([key] * self.num_runs))
        return self._program.predict(self.hypers, self.state, inputs, keys)

    def sample(
        self, inputs: chex.Array, num_enn_samples: int, key: chex.PRNGKey
    ) -> jax.Array:
        """Returns predictions of every run at many indices.

        Args:
          inputs: `[batch, ...]`.
          num_enn_samples: number of indices, the same ones for every run.
          key: draws the indices.

        Returns:
          Predictions, `[num_runs, num_enn_samples, batch, num_outputs]`.

        Raises:
          ValueError: unless `num_enn_samples` is an integer >= 1.
        """
        _checks.positive_int("num_enn_samples", num_enn_samples)
        keys = self._put(jnp.stack([key] * self.num_runs))
        return self._program.sample(
            self.hypers, self.state, inputs, keys, num=num_enn_samples
        )

    def run(self, number: int) -> tuple[EnnArray, TrainingState]:
        """Returns the network of one run, and its state.

        Raises:
          ValueError: unless `number` is in [0, num_runs).
        """
        _checks.one_of("number", number, range(self.num_runs))
        return self._make_enn(_slice(self.hypers, number)), _slice(self.state, number)

    def save(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        """Saves all that training needs to continue; see `Experiment.save`."""
        self._write_save(self._saves.check(path, keep), keep)

    def restore(
        self,
        path: str | os.PathLike[str],
        step: int | None = None,
        data: bool = True,
    ) -> None:
        """Restores a save; see `Experiment.restore`.

        Hyperparameters are not saved: those of the saved runs must be given again.
        """
        update = functools.partial(self._program.update, self.hypers)
        self.step, self.state, keys = self._saves.read(
            path,
            step,
            data,
            self.state,
            types_in_training(self._initial_types, update),
            self._keys,
            self._check_probe,
        )
        self._keys = self._put(keys)
        self.finite = np.array(self._program.finite(self.state.params))
        if data:
            self._reader.drop_batch()

    def _put(self, tree: Any) -> Any:
        """Places arrays `[num_runs, ...]` where their runs are."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, over_runs(self.mesh)))

    def _is_due(self, freq: int | None) -> bool:
        return bool(freq) and self.step % freq == 0

    def _read(self, most: int) -> Chunk:
        if types_of(self.state) != self._settled:
            most = 1  # A loop needs a step that leaves all types as they were.
        self._pace.steps = self._pace.wanted
        return self._reader.read(self.step + 1, min(most, self._pace.steps))

    def _train_on(self, chunk: Chunk) -> None:
        types = types_of(self.state)
        (data,), (batch,) = chunk.data, chunk.batches
        self.state, self._keys, (rows,), finite = self._program.train(
            self.hypers,
            self.state,
            self._keys,
            data,
            batch,
            chunk.num_steps,
            own=self._has_own_data,
            known=self._known,
        )
        if types == types_of(self.state):
            self._settled = types
        self._pace.note(chunk.num_steps)
        rows, finite = jax.device_get((rows, finite))
        self.finite = self.finite & finite
        for i in range(chunk.num_steps):
            self.step += 1
            if self._is_due(self._train_log_freq):
                values = {name: value[:, i] for name, value in rows.items()}
                self._write_rows({"dataset": "train", "sgd": True}, values)

    def _evaluate(self) -> None:
        """Writes the metrics of every run on a batch of every data set."""
        for name, dataset in self._eval_datasets.items():
            batch = batches.next_eval_batch(name, dataset)
            self._keys, keys = self._program.split(self._keys)
            logits = np.asarray(
                self._program.sample(
                    self.hypers, self.state, batch.x, keys, num=self._eval_enn_samples
                )
            )
            labels = batch.y[:, None] if np.ndim(batch.y) == 1 else batch.y
            values = {
                name: [metric(out, labels) for out in logits]
                for name, metric in self._eval_metrics.items()
            }
            self._write_rows({"dataset": name, "sgd": False}, values)

    def _write_rows(self, row: dict[str, Any], values: Mapping[str, Any]) -> None:
        """Writes a row for each run, with its entry of every one of `values`."""
        hypers = self.hypers if isinstance(self.hypers, Mapping) else {}
        numbers = {n: v for n, v in hypers.items() if np.shape(v) == (self.num_runs,)}
        columns = enn_loggers.plain(
            {**numbers, **{name: np.stack(v) for name, v in values.items()}}
        )
        for run, seed in enumerate(self._seeds):
            entries = {name: column[run] for name, column in columns.items()}
            labels = {"step": self.step, "run": run, "seed": seed}
            self.logger.write({**row, **labels, **entries})

    def _write_save(self, root: pathlib.Path, keep: int) -> None:
        if self._reader.holds_batch:
            raise ValueError("A batch was pulled but not trained: call train first.")
        params, state, _ = self.state
        probe = probes.record_or_warn(self._all_runs(), params, state, self._inputs)
        self._saves.write(root, self.step, self.state, self._keys, probe, keep)

    def _check_probe(self, probe: Any, state: TrainingState) -> None:
        inputs = probes.make_inputs(probe, self._inputs)
        probes.check(probe, self._all_runs(), *state[:2], inputs)

    def _all_runs(self) -> EnnArray:
        """All networks as one, by whose predictions a save knows them again."""

        def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
            keys = jnp.stack([index] * self.num_runs)
            all_states = TrainingState(params, state, ())
            out = self._program.predict(self.hypers, all_states, inputs, keys)
            return utils.parse_net_output(out), state

        return EnnArray(apply, self._program.init, PrngIndexer())


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _slice(tree: Any, run: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[run], tree)


def _seeds_of_runs(
    seeds: int | Sequence[int] | np.ndarray,
    hypers: Hyper,
    datasets: Sequence[Data] | None,
) -> tuple[int, list[int]]:
    """Returns the number of runs, and the seed of each."""
    counts = {
        f"hypers{jax.tree_util.keystr(path)}": np.shape(leaf)[:1]
        for path, leaf in jax.tree.leaves_with_path(hypers)
    }
    if np.ndim(seeds):
        counts["seeds"] = np.shape(seeds)[:1]
    if datasets is not None:
        counts["datasets"] = (len(datasets),)
    sizes = set(counts.values())
    if len(sizes) != 1 or not all(sizes) or sizes == {(0,)}:
        found = ", ".join(f"{name} {list(size)}" for name, size in counts.items())
        raise ValueError(
            "seeds, hypers and datasets must have one entry for each run, all equally "
            f"many and at least one; got {found or 'none of them'}."
        )
    (num_runs,) = sizes.pop()
    return num_runs, [int(seed) for seed in np.broadcast_to(seeds, num_runs)]


def _data_of_runs(
    dataset: Data | None, datasets: Sequence[Data] | None
) -> tuple[list[Iterator[Any]], Iterator[Any]]:
    """Returns all data sets, and one iterator that reads them."""
    if (dataset is None) == (datasets is None):
        raise ValueError(
            "Give either dataset, for all runs, or datasets, one for each of them."
        )
    if datasets is None:
        together = batches.as_batches(dataset)
        return [together], together
    own = [batches.as_batches(data) for data in datasets]
    if len({id(data) for data in own}) < len(own):
        raise ValueError(
            "datasets must be different iterators; what all runs share is dataset."
        )
    return own, batches.side_by_side(own)
