"""Posteriors outlive their process: killed while they sample, and saved whole."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import optax
import pytest

from enn import checkpoints, networks, posteriors, supervised
from tests.posteriors.mesh_cases import NETWORKS
from tests.support import tiny

ROOT = pathlib.Path(__file__).parents[2]
OPTIMIZERS = {
    "sgld": lambda: _tracked(posteriors.sgld(1e-2, 12, seed=4)),
    "sghmc": lambda: _tracked(
        posteriors.sghmc(1e-2, 12, preconditioner=posteriors.rmsprop_preconditioner())
    ),
    "trajectory of Adam": lambda: _tracked(optax.adam(1e-2)),
    "swag": lambda: posteriors.track_moments(optax.sgd(0.02, 0.9), 3, 5, rank=3),
}


def _tracked(optimizer: Any) -> Any:
    return posteriors.track_samples(optimizer, 3, every=4, burn_in=6)


def _make(name: str, **kwargs: Any) -> Any:
    return tiny.make_experiment(optimizer=OPTIMIZERS[name](), **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_killed_while_it_records_it_ends_the_same(
    name: str, tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-m", __name__, name, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Saved at 13, after the first samples; killed at 16, after another one.
    assert supervised.saved_steps(tmp_path)[-1] == 13
    whole, resumed = _make(name), _make(name)
    whole.train(30)
    resumed.restore(tmp_path)
    resumed.train(30 - resumed.step)
    tiny.assert_same_training(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_saved_posteriors_predict_the_same(name: str, tmp_path: pathlib.Path) -> None:
    net = NETWORKS[name]
    enn, key = net.make(), jax.random.PRNGKey(1)
    params, state = jax.jit(enn.init)(key, net.inputs, enn.indexer(key))
    forward = networks.make_batch_fwd(enn, num_enn_samples=5)
    expected = forward(params, state, net.inputs)
    checkpoints.save_pretrained(tmp_path / "posterior", params, state)
    saved = checkpoints.load_pretrained(tmp_path / "posterior")
    np.testing.assert_array_equal(forward(*saved, net.inputs), expected)


def _train_and_be_killed(name: str, directory: str) -> None:
    def kill(state: Any, step: int) -> bool:
        if step == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    experiment = _make(name, callback=kill, callback_every=1)
    experiment.train(30, save_dir=directory, save_every=13)


if __name__ == "__main__":
    from tests import conftest  # noqa: F401  # The same compilation as in the tests.

    _train_and_be_killed(*sys.argv[1:])
