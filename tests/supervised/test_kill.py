"""A run killed at any moment ends as one that was not."""

import pathlib
import random
import subprocess
import sys
import time

import pytest

from enn import supervised
from tests.support import tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(seed: int, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "tests.supervised.killed_run", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not supervised.saved_steps(tmp_path):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        process.kill()
    whole, resumed = tiny.make_experiment(), tiny.make_experiment()
    resumed.restore(tmp_path)
    assert resumed.step >= 3
    resumed.train(25)
    whole.train(resumed.step)
    tiny.assert_same_training(resumed, whole)
