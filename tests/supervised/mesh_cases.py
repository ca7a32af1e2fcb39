"""Training on a mesh, for processes that `test_mesh` starts with devices of their own.

    python -m tests.supervised.mesh_cases OUT [PORT PROCESS_ID]

Without a port, trains on 8 devices of one process; with it, on those of two processes.
Writes what came out of it as JSON, and saves beside it.
"""

import functools
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
import numpy as np
import optax

from enn import _sharding, losses, metrics, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.datasets.in_memory import BatchIterator
from enn.loggers import MemoryLogger
from tests import conftest  # noqa: F401  # the same settings
from tests.support.fast import compiled_init

NUM_STEPS = 50
NUM_SAVED = 20
CAPACITY = 64  # of the chunks that hold the steps
BATCH_SIZE = 64
LOSS = losses.average_single_index_loss(losses.XentLoss(2), 8)
OPTIMIZER = optax.adam(1e-2)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "many_devices.md"
MESHES = {
    "none": {},
    "data": {"data": 8},
    "index": {"index": 8},
    "data and index": {"data": 4, "index": 2},
}


def make_mesh(axes: dict[str, int]) -> jax.sharding.Mesh | None:
    return jax.make_mesh(tuple(axes.values()), tuple(axes)) if axes else None


def make_data(num_data: int = 64) -> ArrayBatch:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_data, 6)).astype(np.float32)
    return ArrayBatch(x=x, y=rng.integers(0, 2, (num_data, 1)))


def both_halves(batch_size: int) -> Iterator[ArrayBatch]:
    """What two processes read together: half of each batch from half of the data."""
    data = utils.make_batch_iterator(make_data()).data
    halves = [
        utils.make_batch_iterator(
            jax.tree.map(lambda rows, k=k: rows[k::2], data), batch_size // 2
        )
        for k in range(2)
    ]
    for first, second in zip(*halves, strict=True):
        yield jax.tree.map(lambda *parts: np.concatenate(parts), first, second)


@functools.cache
def batch_norm_ensemble() -> networks.EnnArray:
    """Eight members with batch norm, and prior functions."""

    def model(x: jax.Array) -> jax.Array:
        # Batch norm takes out a bias: its gradient would be rounding errors.
        x = hk.Linear(16, with_bias=False)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        return hk.Linear(2)(jax.nn.relu(x))

    transformed = hk.without_apply_rng(hk.transform_with_state(model))
    ensemble = networks.EnsembleWithState(transformed, 8)
    priors = networks.ensembles.MLPPriors([8, 2], 8, seed=0)
    return compiled_init(networks.EnnWithAdditivePrior(ensemble, priors))


@functools.cache
def dropout() -> networks.EnnArray:
    """A network whose index is a random key."""
    return compiled_init(networks.MLPDropoutENN([16, 2]))


def summary(experiment: Any) -> dict[str, Any]:
    """Logged losses and evaluations, and all numbers of the state."""
    rows = getattr(experiment.logger, "rows", [])
    state = jax.tree.leaves(_sharding.fetch(experiment.mesh, experiment.state))
    return {
        "step": experiment.step,
        "train": [float(row["loss"]) for row in rows if row["sgd"]],
        "test": [
            float(row.get("nll") or row["loss"]) for row in rows if not row["sgd"]
        ],
        "state": np.concatenate([np.ravel(leaf) for leaf in state]).tolist(),
    }


def flops(experiment: Any, batches: list[ArrayBatch], slots: list[Any]) -> float:
    """Counted operations of one device in a training step, as compiled before."""
    batches = [
        jax.tree.map(lambda rows: np.stack([rows] * CAPACITY), batch)
        for batch in batches
    ]
    batches = _sharding.put_rows(experiment.mesh, batches, axis=1)
    key, _ = experiment.rng.internal_state
    with _sharding.on_mesh(experiment.mesh):
        lowered = experiment._run.loop.compiled.lower(
            experiment.state, key, [None] * len(batches), batches, slots, 0, 1
        )
    return lowered.compile().cost_analysis()["flops"]


def train_ensemble(
    mesh: jax.sharding.Mesh | None, num_steps: int = NUM_STEPS, **kwargs: Any
) -> Any:
    experiment = supervised.Experiment(
        batch_norm_ensemble(),
        LOSS,
        OPTIMIZER,
        logger=MemoryLogger(),
        eval_metrics={"nll": metrics.make_nll_marginal_calculator()},
        eval_enn_samples=16,
        eval_log_freq=NUM_STEPS,
        mesh=mesh,
        **kwargs,
    )
    experiment.train(num_steps)
    return experiment


def train_dropout(mesh: jax.sharding.Mesh | None) -> Any:
    """Two losses, the second of them at some steps only."""
    trainers = [
        supervised.MultilossTrainer(LOSS, both_halves(BATCH_SIZE)),
        supervised.MultilossTrainer(LOSS, both_halves(8), lambda step: step % 4 > 0),
    ]
    experiment = supervised.MultilossExperiment(
        dropout(),
        trainers,
        OPTIMIZER,
        logger=MemoryLogger(),
        eval_datasets={"test": both_halves(16)},
        eval_log_freq=NUM_STEPS,
        mesh=mesh,
    )
    experiment.train(NUM_STEPS)
    return experiment


def predict(mesh: jax.sharding.Mesh | None, batch_z: int | None) -> dict[str, Any]:
    """Predictions at 16 indices of 16 rows, and what one device holds of them."""
    enn, x, key = dropout(), make_data().x, jax.random.PRNGKey(0)
    params, state = enn.init(key, x, key)
    forward = networks.make_batch_fwd(enn, 16, batch_z=batch_z, mesh=mesh)
    out = forward(params, state, x[:16])
    return {
        "all": np.asarray(out).tolist(),
        "device_shape": out.addressable_data(0).shape,
    }


def error_of(run: Any) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def on_eight_devices(saves: pathlib.Path) -> dict[str, Any]:
    """Trains and predicts on each mesh, moves between them, and meets the errors."""
    results: dict[str, Any] = {"ensemble": {}, "dropout": {}, "predictions": {}}
    trained = {}
    for name, axes in MESHES.items():
        # Training is the same without the evaluation after its last step.
        evaluation = {"test": both_halves(16)} if len(axes) != 1 else None
        trained[name] = experiment = train_ensemble(
            make_mesh(axes), dataset=both_halves(BATCH_SIZE), eval_datasets=evaluation
        )
        weights = experiment.state.params["linear"]["w"]
        results["ensemble"][name] = {
            **summary(experiment),
            "flops": flops(experiment, [next(both_halves(BATCH_SIZE))], [None]),
            "device_shape": weights.addressable_data(0).shape,
        }
    trained["index"].save(saves)
    results["saved"] = summary(trained["index"])
    three = jax.sharding.Mesh(np.array(jax.devices()[:3]), ["data"])
    trained["three"] = train_ensemble(three, 0, dataset=both_halves(12))
    results["restored"] = {}
    for name in ("none", "three", "data"):
        trained[name].restore(saves, data=False)
        results["restored"][name] = summary(trained[name])["state"]
    for name in ("none", "data and index"):
        experiment = train_dropout(make_mesh(MESHES[name]))
        batches = [next(both_halves(BATCH_SIZE)), next(both_halves(8))]
        key = jax.random.key(0)
        results["dropout"][name] = {
            **summary(experiment),
            "prediction": experiment.predict(make_data().x[:5], key).tolist(),
            "loss": float(experiment.loss(batches[0], key)),
            "flops": flops(experiment, batches, [None, np.zeros(CAPACITY, np.int32)]),
        }
    for name, batch_z in (("none", None), ("index", 1), ("data and index", None)):
        results["predictions"][name] = predict(make_mesh(MESHES[name]), batch_z)

    bad = next(both_halves(12))
    results["errors"] = {
        "first batch": error_of(
            lambda: train_ensemble(make_mesh({"data": 8}), dataset=both_halves(12))
        ),
        "loss": error_of(lambda: trained["data"].loss(bad, jax.random.key(0))),
    }
    return results


class Failing(Iterator[ArrayBatch]):
    """Batches of which, in process 1, one has fewer rows and the next but one fails."""

    def __init__(self, dataset: BatchIterator, num_good: int):
        self.dataset, self.num_good = dataset, num_good
        self.state, self.restore = dataset.state, dataset.restore

    def __next__(self) -> ArrayBatch:
        batch = next(self.dataset)
        number = self.state()["position"] // self.dataset.batch_size - self.num_good
        if jax.process_index() == 1 and number == 1:
            return jax.tree.map(lambda rows: rows[:4], batch)
        if jax.process_index() == 1 and number == 3:
            raise OSError("disk")
        return batch


def on_two_processes(saves: pathlib.Path, port: str, process_id: str) -> dict[str, Any]:
    """Trains on rows that each process reads as documented, resumes, and fails."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "jax.distributed" in block]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize = functools.partial(
        jax.distributed.initialize, f"127.0.0.1:{port}", 2, int(process_id)
    )
    dataset = utils.make_batch_iterator(make_data())
    page: dict[str, Any] = {"jax": jax, "utils": utils, "dataset": dataset}
    exec(block, page)

    def make(num_steps: int) -> supervised.Experiment:
        batches = utils.make_batch_iterator(page["rows"], BATCH_SIZE // 2)
        return train_ensemble(
            jax.make_mesh((2,), ("data",)),
            num_steps,
            dataset=Failing(batches, 1 + NUM_STEPS),
            eval_datasets={"test": utils.make_batch_iterator(page["rows"], 8)},
        )

    experiment = make(NUM_SAVED)
    experiment.save(saves)
    experiment.train(NUM_STEPS - NUM_SAVED)
    resumed = make(0)
    resumed.restore(saves)
    resumed.train(NUM_STEPS - NUM_SAVED)
    return {
        **summary(experiment),
        "resumed": summary(resumed),
        "documented_batch_size": page["batches"].batch_size,
        "errors": [error_of(lambda: experiment.train(30)) for _ in range(2)],
    }


def main(out: str, *process: str) -> None:
    run = on_two_processes if process else on_eight_devices
    path = pathlib.Path(out)
    path.write_text(json.dumps(run(path.parent / "saves", *process)))


if __name__ == "__main__":
    main(*sys.argv[1:])
