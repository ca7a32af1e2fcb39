"""Loggers for experiment trackers, with the real packages writing to a folder.

`.ci/run` installs these; where one is missing, its tests are skipped.
"""

import importlib
import json
import os
import pathlib
import sqlite3
import struct
import time
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from enn import loggers
from tests.support import tiny

pytestmark = pytest.mark.slow

Curve = list[tuple[int, float]]


def _tensorboard(folder: pathlib.Path) -> loggers.Logger:
    return loggers.TensorBoardLogger(folder)


def _read_tensorboard(folder: pathlib.Path) -> dict[str, Curve]:
    """As TensorBoard itself reads them."""
    package = "tensorboard.backend.event_processing.event_accumulator"
    events = importlib.import_module(package).EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def _wandb(folder: pathlib.Path) -> loggers.Logger:
    folder.mkdir(exist_ok=True)
    settings = importlib.import_module("wandb").Settings(silent=True)
    return loggers.WandbLogger(
        project="p",
        mode="offline",
        dir=str(folder),
        id="abc",
        resume="allow",
        settings=settings,
    )


def _read_wandb(folder: pathlib.Path) -> dict[str, Curve]:
    record_type = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    curves: dict[str, Curve] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records: list[Any] = []
        while not (records and records[-1].HasField("exit")):  # Another process writes.
            time.sleep(0.1)
            records = [
                record_type.FromString(content)
                for content in _read_leveldb_log(file.read_bytes())
            ]
        for record in records:
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                for name in row:
                    if not name.startswith("_"):
                        curves.setdefault(name, []).append((row["_step"], row[name]))
    return curves


def _read_leveldb_log(content: bytes) -> list[bytes]:
    """Records of LevelDB's log format: blocks of 32 KiB, after a header of 7 bytes."""
    records, position = [], 7
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        part = content[position + 7 : position + 7 + length]
        if kind in (1, 2):  # Whole, or first.
            records.append(part)
        elif kind in (3, 4):
            records[-1] += part
        position += 7 + length
    return records


def _trackio(folder: pathlib.Path) -> loggers.Logger:
    return loggers.WandbLogger(
        "trackio",
        project=folder.name,
        name="run",
        resume="allow",
        embed=False,
        auto_log_cpu=False,
    )


def _read_trackio(folder: pathlib.Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    file = next(pathlib.Path(os.environ["TRACKIO_DIR"]).glob(f"{folder.name}*.db"))
    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY id")
        for step, text in rows.fetchall():
            for name, value in json.loads(text).items():
                curves.setdefault(name, []).append((step, value))
    return curves


def _mlflow(folder: pathlib.Path) -> loggers.Logger:
    folder.mkdir(exist_ok=True)
    known = folder / "run_id"
    logger = loggers.MlflowLogger(
        known.read_text() if known.exists() else None,
        experiment="e",
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    known.write_text(logger.run_id)
    return logger


def _read_mlflow(folder: pathlib.Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    with sqlite3.connect(folder / "mlflow.db") as connection:
        rows = connection.execute(
            "SELECT key, step, CASE WHEN is_nan THEN NULL ELSE value END FROM metrics "
            "ORDER BY key, step"
        )
        for name, step, value in rows.fetchall():
            curves.setdefault(name, []).append((step, value))
    return curves


TRACKERS = {
    "tensorboardX": (_tensorboard, _read_tensorboard),
    "wandb": (_wandb, _read_wandb),
    "trackio": (_trackio, _read_trackio),
    "mlflow": (_mlflow, _read_mlflow),
}


@pytest.fixture(params=TRACKERS)
def tracker(request, tmp_path_factory, monkeypatch):
    """Makes a logger in a folder, and reads what it wrote there."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.getbasetemp() / "trackio"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Those of the packages are their own.
        pytest.importorskip(request.param)
        make, read = TRACKERS[request.param]
        folder = tmp_path_factory.mktemp(f"runs{request.param}")
        yield lambda: make(folder), lambda: read(folder)


def test_rows_become_curves_of_plain_numbers(tracker):
    make, read = tracker
    logger = make()
    assert isinstance(logger, loggers.Logger)
    logger.write(
        {
            "dataset": "train",
            "step": np.int64(3),
            "sgd": True,
            "loss": jnp.array(0.5),
            "parts": np.array([1.5, 2], np.float32),
        }
    )
    logger.write({"dataset": "test", "step": 3, "run": 4, "nll": jnp.bfloat16(0.25)})
    logger.write({"dataset": "train", "step": 4, "loss": np.float32(0.75)})
    logger.close()
    assert read() == {
        "train/loss": [(3, 0.5), (4, 0.75)],
        "train/parts/0": [(3, 1.5)],
        "train/parts/1": [(3, 2.0)],
        "test/run_4/nll": [(3, 0.25)],
    }


def test_steps_of_a_resumed_run_never_go_back(tracker, tmp_path):
    """The run is lost 7 steps after its last save, at step 40."""
    make, read = tracker
    lost = tiny.make_experiment()
    lost.logger = make()
    lost.train(40, save_dir=tmp_path)
    lost.train(7)
    lost.logger.close()

    resumed = tiny.make_experiment()
    resumed.restore(tmp_path)
    resumed.logger = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Rows of steps before 47")
        resumed.train(25)
    resumed.logger.close()

    whole = tiny.make_experiment()
    whole.train(65)
    curves = read()
    assert set(curves) == {"train/loss", "test/mean"}
    for name, curve in curves.items():
        dataset, _, metric = name.partition("/")
        rows = [row for row in whole.logger.rows if row["dataset"] == dataset]
        expected = [(row["step"], row[metric]) for row in rows]
        steps = [step for step, _ in curve]
        assert steps == sorted(steps)
        assert list(dict(curve)) == [step for step, _ in expected]
        np.testing.assert_allclose(
            list(dict(curve).values()), list(dict(expected).values()), 1e-6
        )
        assert len(curve) - len(expected) in (0, 1)  # The last step may be there twice.


def test_a_run_resumed_within_a_second_keeps_its_first_rows(tmp_path, monkeypatch):
    """Files of events are named by the second at which they are begun."""
    pytest.importorskip("tensorboardX")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1.8e9)
        for step in (1, 2):
            logger = _tensorboard(tmp_path)
            logger.write({"dataset": "train", "step": step, "loss": 0.5})
            logger.close()
    assert _read_tensorboard(tmp_path) == {"train/loss": [(1, 0.5), (2, 0.5)]}
