import csv
import json
import logging
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from enn import loggers


def _read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_serialize_sorts_titles_and_joins():
    assert loggers.serialize({"b_c": 1, "a": 2.0}) == "A = 2.000 | B C = 1"
    assert loggers.serialize({}) == ""


@pytest.mark.strict
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.23456789, "1.235"),
        (np.float32(2.34567), "2.346"),
        (np.int64(3), "3.000"),
        (3, "3"),
        (True, "True"),
        (None, "None"),
        ("train", "train"),
        (float("nan"), "nan"),
        (jnp.array(3), "3"),
        (np.arange(2), "[0 1]"),
        # The original prints these with all their digits.
        (jnp.array(1.23456789), "1.235"),
        (np.array(1.234567), "1.235"),
        (jnp.array(1.5, jnp.bfloat16), "1.500"),
    ],
)
def test_values_are_rounded_if_floating(value, text):
    assert loggers.serialize({"x": value}) == f"X = {text}"


def test_terminal_logger_prints_by_default(capsys):
    """The default of the original is a logging level that is off."""
    loggers.TerminalLogger("my_label").write({"big_value": jnp.array(0.5)})
    loggers.TerminalLogger().write({"step": 1})
    assert capsys.readouterr().out == "[My Label] Big Value = 0.500\nStep = 1\n"


def test_default_logger_is_a_labelled_terminal_logger(capsys):
    loggers.make_default_logger("experiment").write({"step": 1})
    assert capsys.readouterr().out == "[Experiment] Step = 1\n"


def test_terminal_logger_takes_other_sinks_and_texts(caplog):
    logger = loggers.TerminalLogger(
        print_fn=logging.info, serialize_fn=lambda values: str(len(values))
    )
    with caplog.at_level(logging.INFO):
        logger.write({"a": 1, "b": 2})
    assert caplog.messages == ["2"]


def test_terminal_logger_prints_first_row_then_one_each_time_delta(monkeypatch):
    """The original drops the first row, and follows changes of the wall clock."""
    clock = types.SimpleNamespace(now=-100.0)
    monkeypatch.setattr(loggers.time, "monotonic", lambda: clock.now)
    lines = []
    logger = loggers.TerminalLogger(print_fn=lines.append, time_delta=10.0)
    for seconds in [0, 9, 11, 12, 20, 22]:
        clock.now = -100.0 + seconds
        logger.write({"t": seconds})
    assert lines == ["T = 0", "T = 11", "T = 22"]


def test_terminal_logger_prints_every_row_without_time_delta(monkeypatch):
    monkeypatch.setattr(loggers.time, "monotonic", lambda: 5.0)
    lines = []
    logger = loggers.TerminalLogger(print_fn=lines.append)
    for step in range(3):
        logger.write({"step": step})
    assert len(lines) == 3


def test_terminal_logger_does_not_look_at_dropped_rows():
    def serialize(values):
        assert "first" in values
        return ""

    logger = loggers.TerminalLogger(
        print_fn=len, serialize_fn=serialize, time_delta=1e9
    )
    logger.write({"first": 1})
    logger.write({"second": 2})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (jnp.array(0.5), 0.5),
        (np.float32(0.1), 0.10000000149011612),  # as it is, not as it is printed
        (jnp.array(1.5, jnp.bfloat16), 1.5),
        (jnp.array([1.5, 2], jnp.float8_e4m3fn), [1.5, 2.0]),
        (jnp.array(3, jnp.int4), 3),
        (np.int64(3), 3),
        (np.array(True), True),
        (np.str_("a"), "a"),
        (np.array([["a"]]), [["a"]]),
        (jnp.ones([1, 2]), [[1.0, 1.0]]),
        (jax.random.key(7), [0, 7]),
        ({"b": (jnp.array(1), None)}, {"b": [1, None]}),
    ],
)
def test_memory_logger_keeps_what_json_knows(value, expected):
    logger = loggers.MemoryLogger()
    row = {"a": value, "step": 3}
    logger.write(row)
    row["step"] = 4
    logger.write(row)
    assert [kept["step"] for kept in logger.rows] == [3, 4]
    kept = logger.rows[0]["a"]
    assert json.loads(json.dumps(kept)) == expected
    assert type(kept) is type(expected)


def test_lists_are_rounded_in_text():
    row = {"a": [0.1234, [2, 1.0]]}
    assert loggers.serialize(row) == "A = [0.123, [2, 1.000]]"


def test_csv_logger_takes_its_header_from_the_first_row(tmp_path):
    path = tmp_path / "new" / "log.csv"
    logger = loggers.CsvLogger(path)
    logger.write({"step": 1, "loss": jnp.array(0.1), "dataset": "train, all"})
    logger.write({"loss": 0.25, "step": np.int64(2)})
    logger.write({"step": 3, "loss": float("nan"), "dataset": jnp.arange(2)})
    assert path.read_text() == (
        'step,loss,dataset\n1,0.1,"train, all"\n2,0.25,\n3,nan,"[0, 1]"\n'
    )


def test_csv_logger_keeps_new_columns_and_earlier_rows(tmp_path):
    path = tmp_path / "log.csv"
    logger = loggers.CsvLogger(path)
    logger.write({"step": 1, "loss": 0.5})
    logger.write({"step": 2, "accuracy": 0.75})
    logger.write({"step": 3, "loss": 0.25})
    assert _read(path) == [
        {"step": "1", "loss": "0.5", "accuracy": ""},
        {"step": "2", "loss": "", "accuracy": "0.75"},
        {"step": "3", "loss": "0.25", "accuracy": ""},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_csv_logger_continues_a_file(tmp_path):
    path = tmp_path / "log.csv"
    loggers.CsvLogger(path).write({"step": 1, "loss": 0.5})
    loggers.CsvLogger(str(path)).write({"loss": 0.25, "step": 2, "lr": 0.1})
    assert _read(path) == [
        {"step": "1", "loss": "0.5", "lr": ""},
        {"step": "2", "loss": "0.25", "lr": "0.1"},
    ]


def test_csv_logger_continues_after_a_row_cut_short(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,")
    loggers.CsvLogger(path).write({"step": 3, "loss": 0.25})
    assert [row["step"] for row in _read(path)] == ["1", "2", "3"]


def test_csv_logger_starts_an_empty_file(tmp_path):
    path = tmp_path / "log.csv"
    path.touch()
    loggers.CsvLogger(path).write({"step": 3})
    assert path.read_text() == "step\n3\n"


def _read_json(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_hold_what_python_has(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    logger = loggers.JsonLinesLogger(path)
    logger.write({"step": np.int64(1), "loss": jnp.array(0.5), "dataset": "train"})
    logger.write({"step": 1, "sizes": np.arange(2), "path": path, "fold": 2})
    logger.write({"step": 1, "sizes": np.arange(2), "path": path, "fold": 3})
    logger.write({"loss": np.float32("nan")})
    first, second, third, last = _read_json(path)
    assert first == {"step": 1, "loss": 0.5, "dataset": "train"}
    assert second == {"step": 1, "sizes": [0, 1], "path": str(path), "fold": 2}
    assert third == {**second, "fold": 3}
    assert np.isnan(last["loss"])
    assert pandas.read_json(path, lines=True)["step"].tolist()[:3] == [1, 1, 1]


def test_json_lines_continue_after_a_row_cut_short_without_going_back(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [{"step": step, "dataset": "train"} for step in (1, 2, 2, 3)]
    rows[2] = {"step": 2, "dataset": "test"}
    logger = loggers.JsonLinesLogger(path)
    for row in rows[:2]:
        logger.write(row)
    with path.open("a") as file:
        file.write('{"step": 2, "data')
    logger = loggers.JsonLinesLogger(path)
    with pytest.warns(UserWarning, match="steps before 2 are there already"):
        logger.write(rows[0])
    for row in rows:
        logger.write(row)
    assert _read_json(path) == rows


def test_json_lines_refuse_another_file(tmp_path):
    path = tmp_path / "log.jsonl"
    for line in ("step,loss", "3", '{"step": 1'):
        path.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(ValueError, match=r"log.jsonl, line 2: no row"):
            loggers.JsonLinesLogger(path)
    path.write_text("")
    loggers.JsonLinesLogger(path).write({"step": 1})
    assert _read_json(path) == [{"step": 1}]


def test_loggers_satisfy_the_protocol_and_take_keys(tmp_path):
    for logger in (
        loggers.TerminalLogger(),
        loggers.MemoryLogger(),
        loggers.CsvLogger(tmp_path / "log.csv"),
        loggers.JsonLinesLogger(tmp_path / "log.jsonl"),
    ):
        assert isinstance(logger, loggers.Logger)
        logger.write({"key": jax.random.key(0), "loss": jnp.array(1.0)})


@pytest.mark.parametrize("extra", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(extra, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for name in ("wandb", "trackio", "mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, None)
    make = {
        "tensorboard": lambda: loggers.TensorBoardLogger("runs"),
        "wandb": loggers.WandbLogger,
        "trackio": lambda: loggers.WandbLogger("trackio"),
        "mlflow": loggers.MlflowLogger,
    }[extra]
    with pytest.raises(ImportError, match=rf'pip install "enn\[{extra}\]"'):
        make()


def test_another_library_is_refused():
    with pytest.raises(ValueError, match="library must be one of 'wandb', 'trackio'"):
        loggers.WandbLogger("aim")
