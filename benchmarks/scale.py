"""Work of one device in training as devices grow, by XLA's own analysis.

    python benchmarks/scale.py [--devices 8] [--batch-size 1024] [--repeats 7]

Takes the accelerators there are, or else as many virtual CPU devices as `--devices`
says; steps per second show for accelerators alone, since virtual devices share the
cores of one CPU. `bytes` is what a device reads and writes in a step, `held` what it
keeps of parameters and optimiser state.
"""

import argparse
import math
from typing import Any

import jax
import numpy as np
import optax
from _timing import median_seconds

from enn import _sharding, datasets, losses, networks, supervised, utils
from enn.loggers import NullLogger

NUM_FEATURES = 64
SIZES = [256, 256, 10]
MEMBERS = 16


def make_experiment(
    enn: networks.EnnArray, batch_size: int, mesh: jax.sharding.Mesh
) -> supervised.Experiment:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * batch_size, NUM_FEATURES)).astype(np.float32)
    y = rng.integers(0, 10, (2 * batch_size, 1))
    return supervised.Experiment(
        enn,
        losses.average_single_index_loss(losses.XentLoss(10), MEMBERS),
        optax.adam(1e-3),
        utils.make_batch_iterator(datasets.ArrayBatch(x=x, y=y), batch_size),
        logger=NullLogger(),
        train_log_freq=0,
        mesh=mesh,
    )


def step_cost(experiment: supervised.Experiment) -> dict[str, float]:
    """What XLA counts for one device in the body of the training loop."""
    dataset: Any = experiment.dataset
    batch = _sharding.put_rows(experiment.mesh, dataset.take(1), axis=1)
    key, _ = experiment.rng.internal_state
    with _sharding.on_mesh(experiment.mesh):
        lowered = experiment._run.loop.compiled.lower(
            experiment.state, key, [None], [batch], [None], 0, 1
        )
    return lowered.compile().cost_analysis()


def held_bytes(state: Any) -> int:
    return sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))


def meshes(num_devices: int) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """One device, then data, index and both on 2, 4, ... devices."""
    shapes = {"one device": ((1,), ("data",))}
    for n in (2**k for k in range(1, int(math.log2(num_devices)) + 1)):
        shapes[f"data {n}"] = ((n,), ("data",))
        shapes[f"index {n}"] = ((n,), ("index",))
        if n > 2:
            shapes[f"data {n // 2}, index 2"] = ((n // 2, 2), ("data", "index"))
    return shapes


def compare(name: str, enn: networks.EnnArray, args: argparse.Namespace) -> None:
    print(f"\n{name}: work of one device in a step, batch {args.batch_size}")
    print(f"{'mesh':18} {'Mflop':>9} {'of 1':>6} {'MB':>9} {'of 1':>6} {'held MB':>8}")
    experiments = {}
    for label, (shape, axes) in meshes(args.devices).items():
        devices = jax.devices()[: math.prod(shape)]
        mesh = jax.make_mesh(shape, axes, devices=devices)
        experiment = make_experiment(enn, args.batch_size, mesh)
        cost = step_cost(experiment)
        work = np.array([cost["flops"], cost["bytes accessed"]]) / 1e6
        if not experiments:
            whole = work
        experiments[label] = experiment
        share = work / whole
        print(
            f"{label:18} {work[0]:9.1f} {share[0]:6.3f} {work[1]:9.1f} "
            f"{share[1]:6.3f} {held_bytes(experiment.state) / 1e6:8.2f}"
        )
    if jax.default_backend() != "cpu":
        for experiment in experiments.values():
            experiment.train(500)  # Settle how many steps go into a dispatch.
        runs = {
            label: lambda experiment=experiment: experiment.train(500)
            for label, experiment in experiments.items()
        }
        for label, seconds in median_seconds(runs, args.repeats).items():
            print(f"{label:18} {500 / seconds:9.0f} steps/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    args.devices = min(args.devices, jax.device_count())
    print(f"jax {jax.__version__}, {args.devices} of {jax.devices()}")
    ensemble = networks.MLPEnsembleMatchedPrior(SIZES, num_ensemble=MEMBERS)
    compare(f"{MEMBERS} members {SIZES}", ensemble, args)
    dropout = networks.MLPDropoutENN(SIZES)
    compare(f"dropout {SIZES}, {MEMBERS} index samples", dropout, args)
    epinet = networks.epinet.make_mlp_epinet(SIZES, [64, 64], index_dim=10)
    compare(f"epinet on {SIZES}, {MEMBERS} index samples", epinet, args)


if __name__ == "__main__":
    main()
