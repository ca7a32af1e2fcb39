"""A run killed at any moment ends as one that was not, and so does its log."""

import json
import pathlib
import random
import subprocess
import sys
import time
import warnings

import pytest

from enn import loggers, supervised
from tests.support import tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(seed: int, tmp_path: pathlib.Path) -> None:
    saves, log = tmp_path / "saves", tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "tests.supervised.killed_run", saves, log]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not supervised.saved_steps(saves):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        process.kill()
    whole, resumed = tiny.make_experiment(), tiny.make_experiment()
    resumed.restore(saves)
    assert resumed.step >= 3
    resumed.logger = loggers.JsonLinesLogger(log)
    with warnings.catch_warnings():  # There need not be rows after the save.
        warnings.filterwarnings("ignore", message="Rows of steps before")
        resumed.train(25)
    whole.train(resumed.step)
    tiny.assert_same_training(resumed, whole)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows == whole.logger.rows
