"""Training on meshes of devices and processes gives what one device gives."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
import pytest

from enn import losses, networks, supervised, utils
from tests.supervised import mesh_cases

ROOT = pathlib.Path(__file__).parents[2]
MESHES = ["data", "index", "data and index"]

# One worker starts the processes, and their results serve all tests.
pytestmark = [pytest.mark.xdist_group("mesh"), pytest.mark.slow]


def run_cases(outs: Sequence[pathlib.Path], num_devices: int) -> list[Any]:
    """Runs `mesh_cases` in a process for each of `outs`, and returns their results."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for i, out in enumerate(outs):
        joined = [str(port), str(i)] if len(outs) > 1 else []
        command = [sys.executable, "-m", mesh_cases.__name__, str(out), *joined]
        processes.append(
            subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE)
        )
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [json.loads(out.read_text()) for out in outs]


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of one process with 8 devices."""
    (results,) = run_cases([tmp_path_factory.mktemp("mesh") / "results"], 8)
    return results


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of two processes with one device each."""
    path = tmp_path_factory.mktemp("mesh")
    return run_cases([path / "0", path / "1"], 1)


def assert_same(result: Any, expected: Any, names: Sequence[str]) -> None:
    for name in names:
        assert np.size(expected[name])
        np.testing.assert_allclose(result[name], expected[name], 1e-5, 1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_batch_norm_ensemble_trains_as_on_one_device(
    eight_devices: Any, mesh: str
) -> None:
    result, expected = (eight_devices["ensemble"][name] for name in (mesh, "none"))
    assert len(result["train"]) == mesh_cases.NUM_STEPS
    assert_same(result, expected, ["train", "state"])


def test_evaluation_on_a_mesh_is_that_on_one_device(eight_devices: Any) -> None:
    results = eight_devices["ensemble"]
    assert_same(results["data and index"], results["none"], ["test"])


def test_two_losses_with_random_keys_train_as_on_one_device(eight_devices: Any) -> None:
    results = eight_devices["dropout"]
    names = ["train", "test", "state", "prediction", "loss"]
    assert_same(results["data and index"], results["none"], names)


def test_every_device_does_its_part_of_the_work(eight_devices: Any) -> None:
    def share(case: str, mesh: str) -> float:
        results = eight_devices[case]
        return results[mesh]["flops"] / results["none"]["flops"]

    # Every device updates all replicated parameters, hence more than an eighth.
    for mesh in MESHES:
        assert share("ensemble", mesh) < 1 / 4
    assert share("dropout", "data and index") < 1 / 4


def test_members_of_an_ensemble_are_spread_over_the_devices(eight_devices: Any) -> None:
    results = eight_devices["ensemble"]
    shapes = {mesh: results[mesh]["device_shape"] for mesh in MESHES}
    assert shapes == {
        "data": [8, 6, 16],
        "index": [1, 6, 16],
        "data and index": [4, 6, 16],
    }


@pytest.mark.parametrize(
    ("mesh", "device_shape"), [("index", [2, 16, 2]), ("data and index", [8, 4, 2])]
)
def test_predictions_are_spread_over_the_devices(
    eight_devices: Any, mesh: str, device_shape: list[int]
) -> None:
    results = eight_devices["predictions"]
    assert_same(results[mesh], results["none"], ["all"])
    assert results[mesh]["device_shape"] == device_shape


@pytest.mark.parametrize("when", ["first batch", "loss"])
def test_batch_that_does_not_divide_over_the_mesh(
    eight_devices: Any, when: str
) -> None:
    assert eight_devices["errors"][when] == (
        "ValueError: A batch must divide over the 8 devices of the mesh's axis "
        "'data', got 12 rows."
    )


def test_two_processes_with_data_of_their_own_train_as_one(
    eight_devices: Any, two_processes: Any
) -> None:
    first, second = two_processes
    expected = eight_devices["ensemble"]["none"]
    assert_same(first, expected, ["train", "test", "state"])
    assert_same(second, expected, ["state"])
    assert first["documented_batch_size"] == 8


@pytest.mark.parametrize("other", ["none", "three", "data"])
def test_save_is_restored_on_another_mesh(eight_devices: Any, other: str) -> None:
    assert eight_devices["restored"][other] == eight_devices["saved"]["state"]


def test_two_processes_resume_where_they_saved(two_processes: Any) -> None:
    for results in two_processes:
        resumed = results["resumed"]
        assert resumed["step"] == mesh_cases.NUM_STEPS
        assert resumed["state"] == results["state"]
        assert resumed["train"] == results["train"][mesh_cases.NUM_SAVED :]
        assert resumed["test"] == results["test"]


def test_process_0_alone_writes_rows(two_processes: Any) -> None:
    first, second = two_processes
    assert len(first["train"]) == mesh_cases.NUM_STEPS
    assert second["train"] == second["test"] == []


def test_bad_data_of_one_process_stops_both(two_processes: Any) -> None:
    (first_shapes, first_end), (second_shapes, second_end) = (
        results["errors"] for results in two_processes
    )
    must = "ValueError: Processes must have batches of the same shapes and types; "
    assert first_shapes.startswith(must + "process 0 got int64[32, 1], ")
    assert second_shapes.startswith(must + "process 1 got int64[4, 1], ")
    assert first_end == "RuntimeError: The data of process 1 failed."
    assert second_end == "OSError: disk"


def make_experiment(mesh: Any) -> supervised.Experiment:
    return supervised.Experiment(
        networks.MLPEnsembleMatchedPrior([2, 2], num_ensemble=2),
        losses.average_single_index_loss(losses.XentLoss(2)),
        optax.sgd(0.1),
        utils.make_batch_iterator(mesh_cases.make_data(4)),
        mesh=mesh,
    )


@pytest.mark.parametrize("axes", [("batch",), ("data", "model"), ()])
def test_axes_of_other_names(axes: tuple[str, ...]) -> None:
    devices = np.array(jax.devices()[:1]).reshape([1] * len(axes))
    mesh = jax.sharding.Mesh(devices, axes)
    with pytest.raises(ValueError, match=r"axis 'data', 'index' or both, got axes \["):
        make_experiment(mesh)
    with pytest.raises(ValueError, match=r"axis 'data', 'index' or both, got axes \["):
        networks.make_batch_fwd(networks.MLPDropoutENN([2]), mesh=mesh)


def test_what_is_no_mesh() -> None:
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh, got 8\."):
        make_experiment(8)
