"""Tasks that workers import; `python -m tests.sweeps.tasks DIRECTORY` runs them."""

import os
import pathlib
import sys
import time
from typing import Any

from enn import sweeps

TASKS = [
    {"agent": "mlp", "problems": f"toy/{i},toy/x", "scale": i / 10, "flag": i % 2 == 0}
    for i in range(8)
]


def run_one(task: dict[str, Any]) -> dict[str, Any]:
    value = float((task.get("problems") or task["problem"])[4])
    return {
        "kl": [value / 3, -value],
        "member": [0, 1],
        "eval_seconds": [time.time()] * 2,
    }


def slowly(task: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.1)
    return run_one(task)


def dies_once(task: dict[str, Any]) -> dict[str, Any]:
    """The first worker that runs task 5 is killed there."""
    mark = pathlib.Path(os.environ["ENN_TEST_MARK"])
    if task["problems"].startswith("toy/5") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return slowly(task)


def settings(task: dict[str, Any]) -> dict[str, Any]:
    import jax

    jax.numpy.ones(3).sum().block_until_ready()
    return {
        "cache": [jax.config.jax_compilation_cache_dir],
        "flags": [os.environ["XLA_FLAGS"]],
        "processors": [os.environ["NPROC"]],
        "pid": [os.getpid()],
    }


if __name__ == "__main__":
    with sweeps.local_executor(1) as executor:
        sweeps.run_sweep(slowly, TASKS, sys.argv[1], executor=executor)
