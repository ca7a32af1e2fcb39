"""Training one loss by stochastic gradient descent, with evaluation along the way."""

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import haiku as hk
import jax
import numpy as np
import optax

from enn import _checks, _sharding, base, loggers, metrics
from enn.datasets.base import ArrayBatchIterator
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray, Output
from enn.supervised import programs
from enn.supervised.base import BaseExperiment
from enn.supervised.batches import Data, as_batch, as_batches, next_eval_batch
from enn.supervised.loop import TrainingState, purify
from enn.supervised.training import Callback, Trainer, TrainingRun, of_run

__all__ = ["Experiment", "TrainingState"]


class Experiment(BaseExperiment):
    """Trains a network on one loss and evaluates it along the way.

    Every update draws the next key of `rng` and the next batch of its data. Many
    updates run in one dispatch, with the same keys in the same order, the same
    logged rows and the same parameters as one at a time.

    Keys come from the sequence of `seed`: one for the index of `enn.init`, one for
    `enn.init`, then one for each update and one for each data set evaluated. Numbers
    follow the original `enn`: evaluation draws from the same sequence, so that
    `eval_log_freq` changes training.

    Experiments that are given the same objects `enn`, `loss_fn` and `optimizer`, and
    batches of the same shapes, share their compiled programs: a sweep over seeds
    compiles once, whatever the numbers of steps. As with any `jax.jit`, a network or
    loss that reads a variable of Python keeps the value from when it was compiled; to
    have another one, make the network or loss anew.

    A `jax.sharding.Mesh` of devices trains with the result of one device. Its axes are
    `data`, over which the rows of every batch are sharded, for training and for
    evaluation, or `index`, over which the members of an ensemble and the epistemic
    indices are sharded, or both. All else is replicated, and so are members whose
    number does not divide over `index`. What does not depend on the index is computed
    by every device along `index`.

    A mesh may span the devices of several processes, joined by
    `jax.distributed.initialize()`, which all run the same script. Then the data sets
    of each process give the rows of its own devices, as many as those of the others;
    a batch is what all give together, and `data_index` must tell rows of different
    processes apart. The same holds for `loss`, while `predict` and `init_x` take the
    same inputs in every process. Process 0 alone writes rows, whatever the logger, and
    shows progress. An error of the data of one process stops all of them after the
    same step.

    >>> import numpy as np, optax
    >>> from enn import losses, networks, supervised
    >>> x = np.linspace(-1, 1, 8)[:, None]
    >>> enn = networks.MLPEnsembleMatchedPrior([4, 1], num_ensemble=2)
    >>> loss_fn = losses.average_single_index_loss(losses.L2Loss(), 2)
    >>> experiment = supervised.Experiment(
    ...     enn, loss_fn, optax.adam(0.05), (x, x**2), train_log_freq=None
    ... )
    >>> before = experiment.loss((x, x**2), next(experiment.rng))
    >>> experiment.train(100)
    >>> after = experiment.loss((x, x**2), next(experiment.rng))
    >>> experiment.step, bool(after < 0.5 * before)
    (100, True)

    Attributes:
      dataset: the batches trained on.
      enn: the network.
      rng: sequence of random keys.
      state: what training changes, a named tuple of `params`, `network_state` and
        `opt_state`; may be set.
      step: number of steps trained.
      logger: where rows go.
      mesh: the devices that share the work; None for one.

    Args:
      enn: the network.
      loss_fn: loss of the network on a batch.
      optimizer: any optax transformation; it is given the parameters too.
      dataset: endless iterator of batches, or a loader that starts anew whenever it
        ends, such as PyTorch's and `data_set.with_format("numpy").batch(32)` of Hugging
        Face, or arrays in memory. A batch is an `ArrayBatch`, a pair `(x, y)`, or a
        dict with `x` and `y` or `image` and `label`. The rows of an in-memory
        iterator are copied to the device once, when training starts; prior functions
        and a frozen base are computed once for each row, if the values fit in 128 MiB.
      seed: seed of the sequence of keys.
      logger: where rows go; by default they are printed.
      train_log_freq: log metrics every so many steps; 0 or None for never.
      eval_datasets: the same to evaluate on, by name.
      eval_metrics: functions `(logits, labels) -> scalar` by name, of logits
        `[eval_enn_samples, batch, num_outputs]`.
      eval_enn_samples: number of indices to evaluate at.
      eval_log_freq: evaluate every so many steps; 0 or None for never.
      init_x: inputs to initialise with; by default a first batch is drawn for this,
        which is then not trained on.
      mesh: devices that share the work; by default one does it all.
      init_params: parameters to start from, such as those of a trained network, in
        place of those of `enn.init`. The optimiser starts anew.
      init_state: network state to start from, likewise.
      callback: called with `state` and `step` every `callback_every` steps, after
        evaluation and before saving, at the same steps whether or not the run was
        resumed. If it returns False, training stops. Methods `state` and `restore`, of
        an object, save and restore what it has gathered: JSON, bytes or arrays as
        nested lists.
      callback_every: so many steps can go into one dispatch at most.

    Raises:
      TypeError: unless `enn` is an epistemic network, `loss_fn` a loss over indices,
        `dataset` as above and `mesh` a mesh.
      ValueError: if the data set is empty, a number is out of range, or the loss
        rejects the data: labels of all the data are looked at for an in-memory
        iterator, of the first batch for others. For a mesh with other axes, and
        batches that do not divide over it.
    """

    enn: EnnArray = of_run("enn")
    rng: hk.PRNGSequence = of_run("rng")
    state: TrainingState = of_run("state")
    step: int = of_run("step")
    logger: loggers.Logger = of_run("logger")
    mesh: jax.sharding.Mesh | None = of_run("mesh")

    def __init__(
        self,
        enn: EnnArray,
        loss_fn: LossFnArray,
        optimizer: optax.GradientTransformation,
        dataset: Data,
        seed: int = 0,
        logger: loggers.Logger | None = None,
        train_log_freq: int | None = 1,
        eval_datasets: Mapping[str, Data] | None = None,
        eval_metrics: Mapping[str, metrics.MetricCalculator] | None = None,
        eval_enn_samples: int = 100,
        eval_log_freq: int | None = 1,
        init_x: chex.Array | None = None,
        mesh: jax.sharding.Mesh | None = None,
        *,
        init_params: base.AnyTree | None = None,
        init_state: base.AnyTree | None = None,
        callback: Callback | None = None,
        callback_every: int = 1,
    ):
        super().__init__(as_batches(dataset))
        eval_iterators = {
            name: as_batches(data) for name, data in (eval_datasets or {}).items()
        }
        if eval_datasets and not eval_metrics:
            warnings.warn(
                "eval_datasets are given without eval_metrics: nothing is evaluated.",
                stacklevel=2,
            )
        _checks.positive_int("eval_enn_samples", eval_enn_samples)
        evaluate = None
        if eval_datasets and eval_metrics:
            evaluate = functools.partial(
                _evaluate,
                eval_iterators,
                eval_metrics,
                programs.predict_many(
                    enn, eval_enn_samples, _sharding.check_mesh(mesh)
                ),
            )
        self._run = TrainingRun(
            enn,
            [Trainer(purify(enn, loss_fn), self.dataset)],
            optimizer,
            seed=seed,
            logger=logger,
            train_log_freq=train_log_freq,
            eval_log_freq=eval_log_freq,
            eval_datasets=eval_iterators,
            evaluate=evaluate,
            init_x=init_x,
            mesh=mesh,
            init_params=init_params,
            init_state=init_state,
            callback=callback,
            callback_every=callback_every,
        )

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
        self._run.train(num_batches, progress, save_dir, save_every, keep, on_nonfinite)

    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the network's output at `inputs`, at the index drawn with `key`."""
        return self._run.predict(inputs, key)

    def loss(self, batch: Any, key: chex.PRNGKey) -> jax.Array:
        """Returns the loss on `batch`."""
        return self._run.loss(as_batch(batch), key)

    def save(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        """Saves all that training needs to continue with the same numbers.

        That is the state, random keys, step and positions of the data, and a few
        predictions at made-up inputs, which tell the network from others. A save that
        is not finished is never restored: one may be killed at any moment. Several
        processes all call this, with a directory that all of them see. Needs the
        extra `checkpoints`.

        Args:
          path: directory of saves, by step.
          keep: how many of the last saves to keep in it.

        Raises:
          ValueError: if `path` holds saves that this experiment neither made nor
            restored, unless `keep` is an integer >= 1, or if a batch was pulled but
            not trained.
        """
        self._run.save(path, keep)

    def restore(
        self,
        path: str | os.PathLike[str],
        step: int | None = None,
        data: bool = True,
    ) -> None:
        """Restores a save, so that training continues with the same numbers.

        They are the same to the last bit on devices and versions of the same kind.
        The experiment must be made as the saved one was: code, seeds and data are not
        saved. The network must predict what the saved one did: one of the same shapes
        with other prior functions, or on another frozen base, is refused. Saves of
        earlier versions cannot tell, which a warning says. On an error the experiment
        stays as it is. Rows logged between the save and the end
        of the saved run are logged again.

        Args:
          path: directory of saves.
          step: step of the save; by default the latest save.
          data: whether to take data sets to where they were. They need methods
            `state` and `restore`, or `get_state` and `set_state`.

        Raises:
          FileNotFoundError: if there is no finished save.
          ValueError: if there is none of `step`; if it is damaged, or of another
            architecture, network or optimiser, with a step that can be restored
            instead; or if data cannot go to where they were.
        """
        self._run.restore(path, step, data)


def _evaluate(
    datasets: Mapping[str, ArrayBatchIterator],
    calculators: Mapping[str, metrics.MetricCalculator],
    forward: Callable[..., chex.Array],
    run: TrainingRun,
) -> Iterator[dict[str, Any]]:
    """Yields the metrics of a batch of every data set."""
    for name, dataset in datasets.items():
        batch = _sharding.put_rows(run.mesh, next_eval_batch(name, dataset))
        with _sharding.on_mesh(run.mesh):
            logits = forward(run.state, batch.x, next(run.rng))
        logits, labels = _sharding.fetch(run.mesh, (logits, batch.y))
        labels = labels[:, None] if np.ndim(labels) == 1 else labels
        values = {name: metric(logits, labels) for name, metric in calculators.items()}
        yield {"dataset": name, **values}
