"""Training several losses in turn, each on data of its own."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from enn import _sharding, loggers
from enn.datasets.base import ArrayBatchIterator
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray
from enn.supervised.training import (
    PureLoss,
    Trainer,
    TrainingExperiment,
    TrainingState,
    always_train,
    next_eval_batch,
    purify,
)

__all__ = ["MultilossExperiment", "MultilossTrainer", "PureLoss", "TrainingState"]


@dataclasses.dataclass(eq=False)
class MultilossTrainer:
    """One of the losses that a network trains on.

    Attributes:
      loss_fn: loss of the network on a batch.
      dataset: endless iterator of batches.
      should_train: whether to train at a step, by its number from 1 on.
      name: what logged rows call this loss.
    """

    loss_fn: LossFnArray
    dataset: ArrayBatchIterator
    should_train: Callable[[int], bool] = always_train
    name: str = "loss"


class MultilossExperiment(TrainingExperiment):
    """Trains a network on several losses, one update of each at every step.

    At a step every trainer that should train makes one update, in order, with a
    batch and a key of its own; all share the optimiser's state. Keys come from the
    sequence of `seed`: one for the index of `enn.init`, one for `enn.init`, then one
    an update and one for every data set and trainer evaluated.

    Args:
      enn: the network.
      trainers: losses with their data; the first one's data initialises the network.
      optimizer: any optax transformation.
      seed: seed of the sequence of keys.
      logger: where rows go; by default they are printed.
      train_log_freq: log metrics every so many steps; 0 or None for never.
      eval_datasets: endless iterators of batches, by name. Every trainer's loss is
        evaluated on a batch of its own from each.
      eval_log_freq: evaluate every so many steps; 0 or None for never.
      mesh: devices that share the work, see `TrainingExperiment`; one if left out.

    Raises:
      TypeError: if `enn` is no epistemic network, a loss one at a single index, a data
        set no iterator or `mesh` no mesh.
      ValueError: if there are no trainers, the first data set is empty, or a loss
        rejects the data. For a mesh with
        other axes, and batches that do not divide over it.
    """

    def __init__(
        self,
        enn: EnnArray,
        trainers: Sequence[MultilossTrainer],
        optimizer: optax.GradientTransformation,
        seed: int = 0,
        logger: loggers.Logger | None = None,
        train_log_freq: int | None = 1,
        eval_datasets: dict[str, ArrayBatchIterator] | None = None,
        eval_log_freq: int | None = 1,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if not trainers:
            raise ValueError("trainers must hold at least one MultilossTrainer.")
        self._eval_datasets = eval_datasets or {}
        super().__init__(
            enn,
            [
                Trainer(purify(enn, t.loss_fn), t.dataset, t.should_train, t.name)
                for t in trainers
            ],
            optimizer,
            seed,
            logger,
            train_log_freq,
            eval_log_freq,
            init_x=None,
            mesh=mesh,
        )
        everywhere = _sharding.replicated(self.mesh)
        self._eval_losses = [
            jax.jit(t.pure_loss, out_shardings=everywhere) for t in self.pure_trainers
        ]

    @property
    def pure_trainers(self) -> tuple[Trainer, ...]:
        """The trainers, their losses as functions `(params, state, batch, key)`."""
        return self._trainers

    def _labels(self, trainer: Trainer) -> dict[str, Any]:
        return {"trainer": trainer.name}

    def _has_evaluation(self) -> bool:
        return bool(self._eval_datasets)

    def _evaluate(self) -> None:
        for name, dataset in self._eval_datasets.items():
            for trainer, eval_loss in zip(
                self.pure_trainers, self._eval_losses, strict=True
            ):
                batch = next_eval_batch(name, dataset)
                batch = _sharding.put_rows(self.mesh, batch)
                params, network_state, _ = self.state
                with _sharding.on_mesh(self.mesh):
                    loss, (_, metrics) = eval_loss(
                        params, network_state, batch, next(self.rng)
                    )
                row = {"dataset": name, "step": self.step, "sgd": False, "loss": loss}
                self.logger.write({**metrics, **row, **self._labels(trainer)})
