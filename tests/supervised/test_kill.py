"""A run killed at any moment ends as one that was not."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from enn import supervised
from tests.supervised import tiny

ROOT = pathlib.Path(__file__).parents[2]


def test_killed_and_resumed_is_bit_identical(tmp_path: pathlib.Path) -> None:
    killed, stopped = tmp_path / "killed", tmp_path / "stopped"
    command = [sys.executable, "-m", "tests.supervised.killed_run", str(killed)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not supervised.saved_steps(killed):
            assert process.poll() is None
            time.sleep(0.01)
        # What a kill at this moment would leave behind.
        time.sleep(random.Random(0).uniform(0, 0.5))
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        shutil.copytree(killed, stopped)
        process.send_signal(signal.SIGCONT)
        time.sleep(random.Random(1).uniform(0, 0.5))
        process.kill()
    for path in (killed, stopped):
        whole, resumed = tiny.make_experiment(), tiny.make_experiment()
        resumed.restore(path)
        assert resumed.step >= 3
        resumed.train(25)
        whole.train(resumed.step)
        tiny.assert_same_training(resumed, whole)
