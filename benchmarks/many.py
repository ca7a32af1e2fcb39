"""How long 10 seeds × 5 prior scales of the README's ensemble take, and beside what.

    python benchmarks/many.py [--steps 1000] [--alone 50]

`many` trains all 50 in one program. `one by one` trains 50 experiments, each with a
network, loss and optimiser of its own; some of them are timed, as is usual in a loop
over settings. `one by one, shared` makes these once for each prior scale. Each has a
process of its own, without a cache of compiled programs: compilation is included.
Beside the time on the clock stands that of the processor, which other work on the
machine changes less.
"""

import argparse
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

SEEDS, SCALES = range(10), (0.0, 0.3, 1.0, 3.0, 10.0)
WAYS = ("many", "one by one", "one by one, shared")


def seconds() -> np.ndarray:
    """Returns the time on the clock and that of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def run(
    way: str, num_steps: int, num_alone: int, runs_at_once: int | None
) -> np.ndarray:
    """Returns the seconds that all runs take, on the clock and of the processor."""
    import optax

    from enn import losses, networks, supervised
    from enn.supervised import regression_data

    def make_enn(hyper: Any) -> networks.EnnArray:
        return networks.MLPEnsembleMatchedPrior(
            [50, 50, 1], num_ensemble=10, prior_scale=hyper["prior_scale"]
        )

    def make_loss(enn: Any = None, hyper: Any = None) -> Any:
        return losses.average_single_index_loss(losses.L2LossWithBootstrap(), 10)

    def make_optimizer(hyper: Any = None) -> optax.GradientTransformation:
        return optax.adam(1e-3)

    def train(parts: Any, seed: int) -> None:
        dataset = regression_data.make_dataset()
        supervised.Experiment(*parts, dataset, seed, train_log_freq=None).train(
            num_steps
        )

    def make_parts(scale: float) -> Any:
        return make_enn({"prior_scale": scale}), make_loss(), make_optimizer()

    settings = [(seed, scale) for scale in SCALES for seed in SEEDS]
    start = seconds()
    if way == "many":
        seeds, scales = zip(*settings, strict=True)
        many = supervised.ManyExperiments(
            make_enn,
            make_loss,
            make_optimizer,
            regression_data.make_dataset(),
            seeds=seeds,
            hypers={"prior_scale": np.array(scales)},
            train_log_freq=None,
            runs_at_once=runs_at_once,
        )
        many.train(num_steps)
        assert many.finite.all()
    elif way == "one by one":
        for seed, scale in settings[:num_alone]:
            train(make_parts(scale), seed)
        return (seconds() - start) / num_alone * len(settings)
    else:
        for scale in SCALES:
            parts = make_parts(scale)
            for seed in SEEDS:
                train(parts, seed)
    return seconds() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=50, help="how many are timed")
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(*run(args.way, args.steps, args.alone, args.at_once))
        return
    first = None
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way],
            env={
                k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"
            },
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        clock, processor = map(float, done.stdout.split()[-2:])
        first = first or (clock, processor)
        print(
            f"{way:20} {clock:7.1f} s {clock / first[0]:5.1f}x, of the processor "
            f"{processor:7.1f} s {processor / first[1]:5.1f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
