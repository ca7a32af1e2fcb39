"""A sweep to kill and start again: priors and learning rates, a file for each size."""

import sys

import jax
import numpy as np
import optax

from enn import losses, networks, supervised, sweeps
from enn.supervised import regression_data

SCALES, RATES = np.meshgrid([0.3, 1.0, 3.0], [1e-3, 1e-2])


def run_one(task: dict) -> dict:
    """Trains six settings, which compile to one program, and returns a row for each."""
    many = supervised.ManyExperiments(
        lambda hyper: networks.MLPEnsembleMatchedPrior(
            [task["hidden"], 1], num_ensemble=10, prior_scale=hyper["prior_scale"]
        ),
        lambda enn, hyper: losses.average_single_index_loss(losses.L2Loss(), 10),
        lambda hyper: optax.adam(hyper["learning_rate"]),
        regression_data.make_dataset(),
        seeds=task["seed"],
        hypers={"prior_scale": SCALES.ravel(), "learning_rate": RATES.ravel()},
        train_log_freq=None,
    )
    many.train(task["num_steps"])
    x = np.array([[0.25, 1.0], [1.9, 1.0]])  # In the data, and far from it.
    near, far = many.sample(x, 100, jax.random.key(0)).std(axis=1)[..., 0].T
    return {**many.hypers, "near_std": near, "far_std": far}


if __name__ == "__main__":  # Arguments: directory, number of steps.
    directory, steps = sys.argv[1], int((sys.argv[2:] or ["1000"])[0])
    sizes = [{"hidden": n, "seed": 0, "num_steps": steps} for n in (20, 50)]
    with sweeps.local_executor(2) as executor:
        sweeps.run_sweep(run_one, sizes, directory, executor=executor)
    for name, column in sweeps.load(directory).items():
        print(f"{name:14}", *column)
