"""Labels that active learning saves on scikit-learn's digits.

    python benchmarks/active_learning.py [--seeds 10]

Learning curves of a deep ensemble with matched priors that picks its labels by BALD
and by margin, beside labels picked at random. A seed fixes the split of the data, the
first labels, the network and its training, the same for all priorities: differences
are taken seed by seed. Intervals are Student's t.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np
import optax
import scipy.stats
from sklearn import datasets as sk_datasets

from enn import active_learning, datasets, losses, networks, supervised, utils
from enn.loggers import MemoryLogger

PRIORITIES = ("uniform", "bald", "margin")
POOL_SIZE = 1200
TARGET_ACCURACY = 0.9


def learning_curve(
    priority: str, seed: int, num_acquisitions: int, steps: int
) -> list[active_learning.LearningCurvePoint]:
    images, labels = sk_datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = (images[order] / 16).astype(np.float32), labels[order]
    enn = networks.MLPEnsembleMatchedPrior([100, 10], num_ensemble=10, seed=seed)
    loss_fn = losses.average_single_index_loss(losses.XentLoss(10), 10)

    def make_experiment(labelled: datasets.ArrayBatch) -> supervised.Experiment:
        return supervised.Experiment(
            enn,
            loss_fn,
            optax.adam(3e-3),
            utils.make_batch_iterator(labelled, 32, seed),
            seed=seed,
            logger=MemoryLogger(),
            train_log_freq=None,
        )

    return active_learning.run(
        make_experiment,
        datasets.ArrayBatch(x=x[:POOL_SIZE], y=y[:POOL_SIZE]),
        datasets.ArrayBatch(x=x[POOL_SIZE:], y=y[POOL_SIZE:]),
        priority=priority,
        initial_size=20,
        acquisition_size=15,
        num_acquisitions=num_acquisitions,
        num_batches=steps,
        seed=seed,
    )


def interval(values: np.ndarray) -> str:
    """Mean over seeds, and half the width of its 95% confidence interval."""
    mean, num_seeds = f"{values.mean():.3f}", len(values)
    if num_seeds == 1:
        return mean
    t = scipy.stats.t.ppf(0.975, num_seeds - 1)
    return f"{mean} ± {t * values.std(ddof=1) / np.sqrt(num_seeds):.3f}"


def print_table(name: str, num_labels: Sequence[int], values: np.ndarray) -> None:
    """Prints values `[num_priorities, num_seeds, num_points]`."""
    others = PRIORITIES[1:]
    columns = [*PRIORITIES, *(f"{other} - {PRIORITIES[0]}" for other in others)]
    values = np.concatenate([values, values[1:] - values[:1]])
    print(f"\n{name}\n{'labels':>6}" + "".join(f"{c:>18}" for c in columns))
    for i, count in enumerate(num_labels):
        print(f"{count:6}" + "".join(f"{interval(v[:, i]):>18}" for v in values))


def labels_to_reach(
    accuracy: float, num_labels: Sequence[int], values: np.ndarray
) -> np.ndarray:
    """Labels at which each seed first is that accurate; infinity if never."""
    reached = values >= accuracy
    return np.where(
        reached.any(axis=1), np.take(num_labels, reached.argmax(axis=1)), np.inf
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--acquisitions", type=int, default=13)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    # The same programs are compiled for every experiment.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        curves = [
            [
                learning_curve(priority, seed, args.acquisitions, args.steps)
                for seed in range(args.seeds)
            ]
            for priority in PRIORITIES
        ]
    num_labels = [point.num_labels for point in curves[0][0]]
    accuracy, nll = (
        np.array([[[p[i] for p in curve] for curve in runs] for runs in curves])
        for i in (1, 2)
    )
    print(f"jax {jax.__version__}, {jax.devices()}, {time.monotonic() - start:.0f} s")
    print(f"digits: {args.seeds} seeds, mean ± 95% confidence interval")
    print_table("accuracy", num_labels, accuracy)
    print_table("negative log-likelihood (nats)", num_labels, nll)
    print(f"\nlabels to reach an accuracy of {TARGET_ACCURACY}: median over seeds")
    for priority, values in zip(PRIORITIES, accuracy, strict=True):
        counts = labels_to_reach(TARGET_ACCURACY, num_labels, values)
        print(f"{priority:>8} {np.median(counts):6.0f}")


if __name__ == "__main__":
    main()
