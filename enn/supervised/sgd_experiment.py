"""Training one loss by stochastic gradient descent, with evaluation on the way."""

import functools
import warnings

import chex
import jax
import numpy as np
import optax

from enn import _checks, _sharding, loggers, metrics
from enn.datasets.base import ArrayBatchIterator
from enn.losses.base import LossFnArray
from enn.networks import forwarders
from enn.networks.base import EnnArray
from enn.networks.indexers import draw_indices
from enn.supervised.training import (
    Trainer,
    TrainingExperiment,
    TrainingState,
    next_eval_batch,
    purify,
)

__all__ = ["Experiment", "TrainingState"]


class Experiment(TrainingExperiment):
    """Trains a network on one loss and evaluates it on the way.

    Keys come from the sequence of `seed`: one for the index of `enn.init`, one for
    `enn.init`, then one an update and one for every data set evaluated. Numbers
    follow the original `enn`: evaluation draws from the same sequence, so that
    `eval_log_freq` changes training.

    Args:
      enn: the network.
      loss_fn: loss of the network on a batch.
      optimizer: any optax transformation; it is given the parameters too.
      dataset: endless iterator of batches.
      seed: seed of the sequence of keys.
      logger: where rows go; by default they are printed.
      train_log_freq: log metrics every so many steps; 0 or None for never.
      eval_datasets: endless iterators of batches to evaluate on, by name.
      eval_metrics: functions `(logits, labels) -> scalar` by name, of logits
        `[eval_enn_samples, batch, num_outputs]`.
      eval_enn_samples: number of indices to evaluate at.
      eval_log_freq: evaluate every so many steps; 0 or None for never.
      init_x: inputs to initialise with; by default a first batch is drawn for this,
        which is then not trained on.
      mesh: devices that share the work, see `TrainingExperiment`; one if left out.

    Raises:
      TypeError: if `enn` is no epistemic network, `loss_fn` a loss at a single index,
        `dataset` no iterator or `mesh` no mesh.
      ValueError: if the data set is empty, a number is out of range, or the loss
        rejects the data: labels of all the data are looked at for an in-memory
        iterator, of the first batch for others. For a mesh with other axes, and
        batches that do not divide over it.
    """

    def __init__(
        self,
        enn: EnnArray,
        loss_fn: LossFnArray,
        optimizer: optax.GradientTransformation,
        dataset: ArrayBatchIterator,
        seed: int = 0,
        logger: loggers.Logger | None = None,
        train_log_freq: int | None = 1,
        eval_datasets: dict[str, ArrayBatchIterator] | None = None,
        eval_metrics: dict[str, metrics.MetricCalculator] | None = None,
        eval_enn_samples: int = 100,
        eval_log_freq: int | None = 1,
        init_x: chex.Array | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if eval_datasets and not eval_metrics:
            warnings.warn(
                "eval_datasets are given without eval_metrics: nothing is evaluated.",
                stacklevel=2,
            )
        self._eval_datasets = eval_datasets or {}
        self._eval_metrics = eval_metrics or {}
        self._eval_enn_samples = _checks.positive_int(
            "eval_enn_samples", eval_enn_samples
        )
        super().__init__(
            enn,
            [Trainer(purify(enn, loss_fn), dataset)],
            optimizer,
            seed,
            logger,
            train_log_freq,
            eval_log_freq,
            init_x,
            mesh,
        )

        @functools.partial(jax.jit, out_shardings=_sharding.replicated(self.mesh))
        def forward(
            state: TrainingState, inputs: chex.Array, key: chex.PRNGKey
        ) -> chex.Array:
            indices = draw_indices(enn.indexer, key, eval_enn_samples)
            return forwarders.predict_at_indices(
                enn, state.params, state.network_state, inputs, indices
            )

        self._eval_forward = forward

    def _has_evaluation(self) -> bool:
        return bool(self._eval_datasets and self._eval_metrics)

    def _evaluate(self) -> None:
        for name, dataset in self._eval_datasets.items():
            batch = _sharding.put_rows(self.mesh, next_eval_batch(name, dataset))
            with _sharding.on_mesh(self.mesh):
                logits = self._eval_forward(self.state, batch.x, next(self.rng))
            logits, labels = _sharding.fetch(self.mesh, (logits, batch.y))
            labels = labels[:, None] if np.ndim(labels) == 1 else labels
            self.logger.write(
                {
                    "dataset": name,
                    "step": self.step,
                    "sgd": False,
                    **{
                        metric_name: metric(logits, labels)
                        for metric_name, metric in self._eval_metrics.items()
                    },
                }
            )
