import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import explicit_mesh

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_rows_on_explicit_axes_give_the_numbers_of_one_device():
    # The axes of jax.make_mesh: sorts, splits and gathers of sharded rows were errors.
    count = f"--xla_force_host_platform_device_count={explicit_mesh.NUM_DEVICES}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    run = subprocess.run(
        [sys.executable, "-m", explicit_mesh.__name__],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout.splitlines()[-1]) == {}
