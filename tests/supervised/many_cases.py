"""Runs of a small ensemble, trained together or alone.

`python -m tests.supervised.many_cases OUT` trains them on a mesh of 4 devices, for
`test_many`, which starts it with as many.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import optax

from enn import losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests import conftest  # noqa: F401  # the same settings

SEEDS = [0, 1, 2, 3]
HYPERS = {
    "learning_rate": [1e-2, 1e-2, 1e-3, 3e-2],
    "prior_scale": [0.0, 1.0, 3.0, 1.0],
    "l2": [0.0, 0.1, 1.0, 0.01],
}


def make_enn(hyper: Any) -> Any:
    return networks.MLPEnsembleMatchedPrior(
        [4, 2], num_ensemble=3, prior_scale=hyper["prior_scale"]
    )


def make_loss(enn: Any, hyper: Any) -> Any:
    loss = losses.average_single_index_loss(losses.XentLoss(2), 4)
    return losses.add_l2_weight_decay(loss, hyper["l2"])


def make_optimizer(hyper: Any) -> Any:
    return optax.adam(hyper["learning_rate"])


def make_data(seed: int = 0, num_data: int = 12) -> ArrayBatch:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_data, 3)).astype(np.float32)
    return ArrayBatch(x=x, y=(x[:, :1] * x[:, 1:2] > 0).astype(np.int32))


def make_batches(seed: int = 0, num_data: int = 12) -> Any:
    return utils.make_batch_iterator(make_data(seed, num_data), 5, seed)


EVALUATION = {
    "eval_metrics": {
        "accuracy": lambda logits, y: (logits.mean(0).argmax(-1) == y[:, 0]).mean(),
        "mean": lambda logits, y: logits.mean(),
    },
    "eval_enn_samples": 3,
    "eval_log_freq": 10,
}


def make_many(dataset: Any = None, **kwargs: Any) -> supervised.ManyExperiments:
    if dataset is None and "datasets" not in kwargs:
        dataset = make_batches()
    return supervised.ManyExperiments(
        make_enn=make_enn,
        make_loss=make_loss,
        dataset=dataset,
        **{
            "make_optimizer": make_optimizer,
            "seeds": SEEDS,
            "hypers": HYPERS,
            "logger": MemoryLogger(),
        }
        | {"train_log_freq": 1, "eval_datasets": {"test": make_batches(9)}}
        | EVALUATION
        | kwargs,
    )


def make_alone(run: int, dataset: Any = None, **kwargs: Any) -> supervised.Experiment:
    """Returns the experiment that trains one of the runs."""
    hyper = {name: values[run] for name, values in HYPERS.items()}
    enn = make_enn(hyper)
    return supervised.Experiment(
        enn,
        make_loss(enn, hyper),
        make_optimizer(hyper),
        make_batches() if dataset is None else dataset,
        SEEDS[run],
        MemoryLogger(),
        eval_datasets={"test": make_batches(9)},
        **EVALUATION,
        **kwargs,
    )


def summary(many: supervised.ManyExperiments) -> dict[str, Any]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(many.state)]
    rows: Any = many.logger
    x = make_data().x
    return {
        "state": np.concatenate([np.ravel(leaf) for leaf in leaves]).tolist(),
        "rows": rows.rows,
        "prediction": many.predict(x, jax.random.key(1)).train.tolist(),
    }


if __name__ == "__main__":
    out, mesh = pathlib.Path(sys.argv[1]), jax.make_mesh([2, 2], ["data", "index"])
    own = [make_batches(run, 8 + run) for run in range(4)]
    shared, separate = make_many(mesh=mesh), make_many(mesh=mesh, datasets=own)
    shared.train(7)
    shared.save(out / "saves")
    shared.train(5)
    separate.train(12)
    resumed = make_many(mesh=mesh)
    resumed.restore(out / "saves")
    resumed.train(5)
    error = ""
    try:
        make_many(mesh=mesh, seeds=[0, 1, 2], hypers=None)
    except ValueError as caught:
        error = str(caught)
    weights = jax.tree.leaves(shared.state.params)[0]
    (out / "results").write_text(
        json.dumps(
            {
                "shared": summary(shared),
                "separate": summary(separate),
                "resumed": summary(resumed),
                "error": error,
                "on one device": weights.addressable_data(0).shape[0],
            }
        )
    )
