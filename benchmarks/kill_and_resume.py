"""Kills training at random moments with SIGKILL and resumes it.

    python benchmarks/kill_and_resume.py [--tries 20]

Every run must end with the same bits in parameters, network and optimiser state,
random key and data position as one that was never killed.
"""

import argparse
import hashlib
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import optax

from enn import losses, networks, supervised
from enn.loggers import MemoryLogger
from enn.supervised import regression_data

NUM_STEPS = 600
SAVE_EVERY = 20


def train(path: str) -> str:
    """Trains to the end, from the last save if there is one; returns a digest."""
    experiment = supervised.Experiment(
        networks.MLPEnsembleMatchedPrior([50, 50, 1], num_ensemble=10),
        losses.average_single_index_loss(losses.L2LossWithBootstrap(), 10),
        optax.adam(1e-3),
        regression_data.make_dataset(),
        logger=MemoryLogger(),
    )
    if supervised.saved_steps(path):
        experiment.restore(path)
    remaining = NUM_STEPS - experiment.step
    experiment.train(remaining, save_dir=path, save_every=SAVE_EVERY)
    digest = hashlib.sha256(repr(experiment.dataset.state()).encode())
    for leaf in jax.tree.leaves((experiment.state, experiment.rng.internal_state)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def start(path: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(child: subprocess.Popen[str], path: pathlib.Path, step: int) -> None:
    """Waits until a run has saved at `step`, or has ended."""
    while child.poll() is None and [0, *supervised.saved_steps(path)][-1] < step:
        time.sleep(0.005)


def finish(path: pathlib.Path) -> str:
    with start(path) as child:
        digest = child.communicate()[0]
    if child.returncode:
        raise RuntimeError(f"A run failed with status {child.returncode}.")
    return digest.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", metavar="PATH", help="train there, and nothing else")
    args = parser.parse_args()
    if args.child:
        print(train(args.child))
        return
    rng = random.Random(args.seed)
    identical = 0
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        expected = finish(pathlib.Path(root, "whole"))
        seconds = time.perf_counter() - began
        print(f"{NUM_STEPS} steps, a save every {SAVE_EVERY}: {seconds:.1f} s")
        for i in range(args.tries):
            path = pathlib.Path(root, str(i))
            with start(path) as child:
                wait_for(child, path, rng.randrange(0, NUM_STEPS, SAVE_EVERY))
                time.sleep(rng.uniform(0, 0.2))
                ended = child.poll() is not None
                child.kill()
            steps = supervised.saved_steps(path)
            cut = len(list(path.glob("*"))) > len(steps)
            when = "after its end" if ended else "in a save" if cut else "elsewhere"
            same = finish(path) == expected
            identical += same
            last, result = [0, *steps][-1], "bit-identical" if same else "DIFFERENT"
            print(f"try {i + 1:2}: killed {when:13} last save {last:3}: {result}")
    print(f"{identical} of {args.tries} ended bit-identical")
    sys.exit(identical != args.tries)


if __name__ == "__main__":
    main()
