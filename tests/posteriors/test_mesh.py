"""On a mesh of eight devices posteriors sample and predict what they do on one."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.posteriors import mesh_cases

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("mesh") / "logits.json"
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    command = [sys.executable, "-m", mesh_cases.__name__, str(out)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", mesh_cases.PREDICTIONS)
def test_meshes_predict_what_one_device_predicts(name: str, on_meshes: Any) -> None:
    expected = mesh_cases.PREDICTIONS[name](name)
    for axes in mesh_cases.MESHES:
        np.testing.assert_allclose(
            on_meshes[f"{name} {axes}"], expected, rtol=1e-4, atol=1e-5
        )
