"""Training several losses in turn, each on data of its own."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import optax

from enn import _sharding, loggers
from enn.datasets.base import ArrayBatchIterator
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray, Output
from enn.supervised import programs
from enn.supervised.base import BaseExperiment
from enn.supervised.batches import Data, as_batch, as_batches, next_eval_batch
from enn.supervised.loop import PureLoss, TrainingState, purify
from enn.supervised.training import (
    Callback,
    Trainer,
    TrainingRun,
    always_train,
    of_run,
)

__all__ = ["MultilossExperiment", "MultilossTrainer", "PureLoss", "TrainingState"]


@dataclasses.dataclass(eq=False)
class MultilossTrainer:
    """One of the losses that a network trains on.

    Attributes:
      loss_fn: loss of the network on a batch.
      dataset: what an `Experiment` trains on.
      should_train: whether to train at a step, by its number from 1 on.
      name: what logged rows call this loss.
    """

    loss_fn: LossFnArray
    dataset: Data
    should_train: Callable[[int], bool] = always_train
    name: str = "loss"


class MultilossExperiment(BaseExperiment):
    """Trains a network on several losses, one update of each at every step.

    At a step every trainer that should train makes one update, in order, with a
    batch and a key of its own; all share the optimiser's state. Keys come from the
    sequence of `seed`: one for the index of `enn.init`, one for `enn.init`, then one
    for each update and one for each data set and trainer evaluated. In all else, and
    on a mesh of devices, it is as `Experiment`.

    >>> import numpy as np, optax
    >>> from enn import loggers, losses, networks
    >>> from enn.supervised import MultilossExperiment, MultilossTrainer
    >>> enn, data = networks.MLPDropoutENN([1]), (np.ones([5, 1]), np.ones([5, 1]))
    >>> fit = losses.average_single_index_loss(losses.L2Loss())
    >>> fifth = MultilossTrainer(fit, data, lambda step: step % 5 == 0, name="fifth")
    >>> trainers, log = [MultilossTrainer(fit, data), fifth], loggers.MemoryLogger()
    >>> experiment = MultilossExperiment(enn, trainers, optax.adam(0.1), logger=log)
    >>> experiment.train(10)
    >>> [row["step"] for row in log.rows if row["trainer"] == "fifth"]
    [5, 10]

    Attributes:
      dataset: the batches trained on by the first trainer.
      enn: the network.
      rng: sequence of random keys.
      state: what training changes, a named tuple of `params`, `network_state` and
        `opt_state`; may be set.
      step: number of steps trained.
      logger: where rows go.
      mesh: the devices that share the work; None for one.

    Args:
      enn: the network.
      trainers: losses with their data; the first one's data initialises the network.
      optimizer: any optax transformation.
      seed: seed of the sequence of keys.
      logger: where rows go; by default they are printed.
      train_log_freq: log metrics every so many steps; 0 or None for never.
      eval_datasets: data to evaluate on, by name. Every trainer's loss is
        evaluated on a batch of its own from each.
      eval_log_freq: evaluate every so many steps; 0 or None for never.
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
      TypeError: unless `enn` is an epistemic network, every loss one over indices,
        every data set an iterator and `mesh` a mesh.
      ValueError: if there are no trainers, the first data set is empty, or a loss
        rejects the data. For a mesh with other axes, and batches that do not divide
        over it.
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
        trainers: Sequence[MultilossTrainer],
        optimizer: optax.GradientTransformation,
        seed: int = 0,
        logger: loggers.Logger | None = None,
        train_log_freq: int | None = 1,
        eval_datasets: Mapping[str, Data] | None = None,
        eval_log_freq: int | None = 1,
        mesh: jax.sharding.Mesh | None = None,
        *,
        init_params: hk.Params | None = None,
        init_state: hk.State | None = None,
        callback: Callback | None = None,
        callback_every: int = 1,
    ):
        if not trainers:
            raise ValueError("trainers must hold at least one MultilossTrainer.")
        pure_trainers = [
            Trainer(
                purify(enn, t.loss_fn),
                as_batches(t.dataset),
                t.should_train,
                t.name,
                {"trainer": t.name},
            )
            for t in trainers
        ]
        super().__init__(pure_trainers[0].dataset)
        evaluate = None
        eval_iterators = {
            name: as_batches(data) for name, data in (eval_datasets or {}).items()
        }
        if eval_iterators:
            evaluate = functools.partial(_evaluate, eval_iterators)
        self._run = TrainingRun(
            enn,
            pure_trainers,
            optimizer,
            seed=seed,
            logger=logger,
            train_log_freq=train_log_freq,
            eval_log_freq=eval_log_freq,
            eval_datasets=eval_iterators,
            evaluate=evaluate,
            init_x=None,
            mesh=mesh,
            init_params=init_params,
            init_state=init_state,
            callback=callback,
            callback_every=callback_every,
        )

    @property
    def pure_trainers(self) -> tuple[Trainer, ...]:
        """The trainers, their losses as functions `(params, state, batch, key)`."""
        return self._run.trainers

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
        """Trains for `num_batches` steps, as `Experiment.train` does."""
        self._run.train(num_batches, progress, save_dir, save_every, keep, on_nonfinite)

    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the network's output at `inputs`, at the index drawn with `key`."""
        return self._run.predict(inputs, key)

    def loss(self, batch: Any, key: chex.PRNGKey) -> jax.Array:
        """Returns the first loss on `batch`."""
        return self._run.loss(as_batch(batch), key)

    def save(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        """Saves all that training needs to continue, as `Experiment.save` does."""
        self._run.save(path, keep)

    def restore(
        self,
        path: str | os.PathLike[str],
        step: int | None = None,
        data: bool = True,
    ) -> None:
        """Restores a save, as `Experiment.restore` does."""
        self._run.restore(path, step, data)


def _evaluate(
    datasets: Mapping[str, ArrayBatchIterator], run: TrainingRun
) -> Iterator[dict[str, Any]]:
    """Yields every loss on a batch of its own from every data set."""
    for name, dataset in datasets.items():
        for trainer in run.trainers:
            batch = _sharding.put_rows(run.mesh, next_eval_batch(name, dataset))
            eval_loss = programs.loss(trainer.pure_loss, run.mesh)
            with _sharding.on_mesh(run.mesh):
                loss, metrics = eval_loss(run.state, batch, next(run.rng))
            yield {**metrics, "dataset": name, "loss": loss, **trainer.labels}
