"""Sweeps lose nothing, wherever their tasks run and however they end."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from enn import sweeps
from tests.sweeps import tasks as cases
from tests.sweeps.tasks import TASKS, run_one

ROOT = pathlib.Path(__file__).parents[2]


class Stub:
    """Runs at once; knows positional arguments only, as Dask's executor."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        future: Any = concurrent.futures.Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def contents(directory: pathlib.Path) -> dict[str, Any]:
    """All files, without what a rerun may change."""
    files = sorted(directory.glob("*.csv"))
    frames = [pd.read_csv(file, dtype=str) for file in files]
    return {
        file.name: frame[[c for c in frame if not c.endswith("_seconds")]].to_csv()
        for file, frame in zip(files, frames, strict=True)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of an uninterrupted run in this process."""
    directory = tmp_path_factory.mktemp("whole")
    sweeps.run_sweep(run_one, TASKS, directory, progress=False)
    assert len(contents(directory)) == len(TASKS)
    return contents(directory)


def test_a_file_is_named_after_its_task_and_holds_it(tmp_path: pathlib.Path) -> None:
    task = {"problem": "toy/3", "agent": "mlp", "seed": 1, "note": None}
    (path,) = sweeps.run_sweep(run_one, [task], tmp_path / "new", progress=False)
    text = '{"agent": "mlp", "note": null, "problem": "toy/3", "seed": 1}'
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    assert path == tmp_path / "new" / f"mlp-toy-3-{digest}.csv"
    header, first, second = path.read_text().splitlines()
    names = "problem,agent,seed,note,enn_version,jax_version,device_kind,"
    assert header == names + "kl,member,eval_seconds"
    assert first.startswith("toy/3,mlp,1,,")
    assert first.split(",")[-3:-1] == ["1.0", "0"]
    assert second.split(",")[-3:-1] == ["-3.0", "1"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["stub", "threads"])
def test_executors_write_what_this_process_writes(
    kind: str, whole: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    make = {
        "stub": lambda: contextlib.nullcontext(Stub()),
        "threads": lambda: concurrent.futures.ThreadPoolExecutor(3),
    }[kind]
    with make() as executor:
        paths = sweeps.run_sweep(
            run_one, TASKS, tmp_path, executor=executor, progress=False
        )
    assert [path.name.split("-")[2] for path in paths] == list("01234567")
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_processes_write_it_too_with_one_thread_each(
    whole: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    with sweeps.local_executor(2) as executor:
        for call, name in ((run_one, "a"), (cases.settings, "b")):
            sweeps.run_sweep(
                call, TASKS, tmp_path / name, executor=executor, progress=False
            )
    assert contents(tmp_path / "a") == whole
    rows = sweeps.load(tmp_path / "b")
    assert set(rows["cache"]) == {str(tmp_path / "cache")}
    assert os.getpid() not in rows["pid"]
    assert set(rows["processors"]) == {1}
    assert all("multi_thread_eigen=false" in flags for flags in rows["flags"])


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return state.split()[0] != "Z"
    return False


def children(pid: int) -> list[int]:
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(
    whole: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-m", "tests.sweeps.tasks", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as driver:
        while len(list(tmp_path.glob("*.csv"))) < 3:
            assert driver.poll() is None
            time.sleep(0.005)
        workers = children(driver.pid)
        driver.kill()
    assert workers
    before = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    assert 3 <= len(before) < 8
    (tmp_path / "mlp-toy-7-half.csv.part").write_text("agent,prob")
    sweeps.run_sweep(run_one, TASKS, tmp_path, progress=False)
    assert contents(tmp_path) == whole
    assert all(path.read_bytes() == text for path, text in before.items())
    deadline = time.monotonic() + 5  # Workers end with their driver.
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, workers))


def test_a_failing_task_stops_no_other_and_is_tried_again(
    whole: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    ran = []

    def fails(task: dict[str, Any]) -> dict[str, Any]:
        ran.append(task["problems"][4])
        if task["problems"][4] in "25":
            raise OSError(f"no {task['problems']}")
        return run_one(task)

    with pytest.raises(RuntimeError, match="2 of 8 tasks failed") as caught:
        sweeps.run_sweep(fails, TASKS, tmp_path, progress=False)
    assert "mlp-toy-2-" in str(caught.value)
    assert "OSError('no toy/5,toy/x')" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(contents(tmp_path)) == 6
    ran.clear()
    sweeps.run_sweep(run_one, TASKS[:1], tmp_path, progress=False)
    with pytest.raises(RuntimeError, match="2 of 8"):
        sweeps.run_sweep(fails, TASKS, tmp_path, progress=False)
    assert ran == ["2", "5"]
    sweeps.run_sweep(run_one, TASKS, tmp_path, progress=False)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "must return columns by name"),
        ({}, "must return columns by name"),
        ({"a": [1, 2], "b": [1]}, "must have one length"),
        ({"a": []}, "at least one row"),
        ({"a": 3.0}, "must have one length"),
        ({"a": [1], "agent": ["x"]}, r"must not return columns named \['agent'\]"),
        ({"a": [1], "jax_version": ["x"]}, "must not return columns named"),
    ],
)
def test_bad_columns_fail_their_task(
    returned: Any, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(RuntimeError, match=message):
        sweeps.run_sweep(lambda task: returned, TASKS[:1], tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "other task"])
def test_a_foreign_file_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    paths = sweeps.run_sweep(run_one, TASKS[:2], tmp_path, progress=False)
    paths[1].write_text(paths[0].read_text() if text == "other task" else text)
    with pytest.raises(ValueError, match=r"mlp-toy-1-.*toy/1,toy/x"):
        sweeps.run_sweep(run_one, TASKS, tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2  # Before anything ran.


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([{"a": [1]}], TypeError, r"got \[1\] for 'a'"),
        ([{"a": np.float32(1)}], TypeError, "flat dict of JSON scalars"),
        ([{1: 1}], TypeError, "flat dict of JSON scalars"),
        ([{}], TypeError, "must be a dict"),
        (["a"], TypeError, "must be a dict"),
        ([{"a": float("nan")}], ValueError, "not JSON compliant"),
        ([{"device_kind": "cpu"}], ValueError, "no entry 'device_kind'"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], ValueError, "all be different"),
    ],
)
def test_bad_tasks(
    tasks: Any, error: type[Exception], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(error, match=message):
        sweeps.run_sweep(run_one, tasks, tmp_path, progress=False)


def test_interrupting_cancels_what_has_not_begun(tmp_path: pathlib.Path) -> None:
    ran = []

    def interrupted(task: dict[str, Any]) -> dict[str, Any]:
        ran.append(task)
        if len(ran) == 3:
            raise KeyboardInterrupt
        time.sleep(0.02)
        return run_one(task)

    with (
        concurrent.futures.ThreadPoolExecutor(1) as executor,
        pytest.raises(KeyboardInterrupt),
    ):
        sweeps.run_sweep(interrupted, TASKS, tmp_path, executor=executor)
    assert len(ran) < 6
    assert len(contents(tmp_path)) == 2


def test_load_gives_types_and_fills_gaps(tmp_path: pathlib.Path) -> None:
    rows = {
        "a": {"kl": [0.1, np.inf], "n": np.int32([1, 2]), "ok": [True, False]},
        "b": {"kl": [1, -2e-8], "n": [3, 4], "ok": [True] * 2, "more": [5, None]},
        "c": {"kl": [np.float32(0.1)], "n": [5], "ok": np.array([False])},
    }
    tasks = [{"agent": name, "id": f"00{i}"} for i, name in enumerate(rows)]
    sweeps.run_sweep(lambda t: rows[t["agent"]], tasks, tmp_path, progress=False)
    loaded = sweeps.load(tmp_path)
    assert {n: v.dtype.kind for n, v in loaded.items() if "_" not in n} == {
        "agent": "U",
        "id": "U",
        "kl": "f",
        "n": "i",
        "ok": "b",
        "more": "f",
    }
    assert loaded["kl"].tolist() == [0.1, np.inf, 1.0, -2e-8, float(np.float32(0.1))]
    np.testing.assert_array_equal(loaded["more"], [np.nan] * 2 + [5] + [np.nan] * 2)
    assert loaded["agent"].tolist() == list("aabbc")
    assert loaded["ok"].tolist() == [True, False, True, True, False]
    assert pd.DataFrame(loaded).shape == (5, 9)


def test_load_refuses_mixed_versions_and_other_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        sweeps.load(tmp_path)
    paths = sweeps.run_sweep(run_one, TASKS[:2], tmp_path, progress=False)
    version = sweeps.load(tmp_path)["jax_version"][0]
    paths[1].write_text(paths[1].read_text().replace(version, "0.4.30"))
    with pytest.raises(ValueError, match=f"jax {version} in .* jax 0.4.30 in mlp-toy"):
        sweeps.load(tmp_path)
    assert len(sweeps.load(tmp_path, mixed_versions=True)["kl"]) == 4
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"notes\.csv is not a file of"):
        sweeps.load(tmp_path, mixed_versions=True)


@pytest.mark.parametrize("num_workers", [0, 1.5, True])
def test_number_of_workers(num_workers: Any) -> None:
    with pytest.raises(ValueError, match=f"integer >= 1, got {num_workers}"):
        sweeps.local_executor(num_workers)


def test_the_bar_names_the_last_file(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = sweeps.run_sweep(run_one, TASKS[:1], tmp_path)
    sweeps.run_sweep(run_one, TASKS[:2], tmp_path)
    shown = capsys.readouterr().err
    assert path.stem in shown
    assert "2/2" in shown


def test_importing_it_imports_no_jax() -> None:
    code = "import sys, enn.sweeps; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture
def dask(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of two worker processes."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("ENN_TEST_MARK", str(tmp_path / "killed"))
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=50,
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_dask_survives_the_death_of_a_worker(
    dask: Any, whole: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    executor = dask.get_executor(pure=False, retries=2)
    out = tmp_path / "out"
    sweeps.run_sweep(cases.dies_once, TASKS, out, executor=executor, progress=False)
    assert (tmp_path / "killed").exists()
    assert contents(out) == whole
