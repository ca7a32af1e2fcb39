"""Loggers: where the rows of metrics that training writes go."""

import csv
import json
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TextIO, runtime_checkable

import jax
import numpy as np

from enn import _checks, _extras

LoggingData = Mapping[str, Any]
"""One row: values by name. Experiments write Python numbers, strings and lists."""


@runtime_checkable
class Logger(Protocol):
    """Takes one row of metrics at a time."""

    def write(self, data: LoggingData) -> None:
        """Records one row."""
        ...


def plain(values: LoggingData) -> dict[str, Any]:
    """Returns a row as Python numbers, strings and lists, ready for `json.dumps`.

    >>> import numpy as np
    >>> from enn import loggers
    >>> loggers.plain({"loss": np.float32(0.5), "sizes": np.array([1, 2])})
    {'loss': 0.5, 'sizes': [1, 2]}
    """
    return {name: _plain(value) for name, value in _fetch(values).items()}


def serialize(values: LoggingData) -> str:
    """Returns a row as text, sorted by name: `A Name = 1.000 | Step = 3`.

    Floats have three decimals, and so have NumPy scalars of any kind.

    >>> from enn import loggers
    >>> loggers.serialize({"step": 3, "train_loss": 0.25})
    'Step = 3 | Train Loss = 0.250'
    """
    row = sorted(_fetch(values).items())
    return " | ".join(f"{_title(name)} = {_format(value)}" for name, value in row)


class TerminalLogger:
    """Prints rows as text, at most one every `time_delta` seconds.

    >>> from enn import loggers
    >>> loggers.TerminalLogger("train").write({"step": 3, "loss": 0.25})
    [Train] Loss = 0.250 | Step = 3
    """

    def __init__(
        self,
        label: str = "",
        print_fn: Callable[[str], Any] = print,
        serialize_fn: Callable[[LoggingData], str] = serialize,
        time_delta: float = 0.0,
    ):
        """Prints to the terminal unless told otherwise.

        Args:
          label: name of what is logged, in front of each row.
          print_fn: takes each line; `logging.info`, for instance.
          serialize_fn: turns a row into text.
          time_delta: seconds after a printed row in which rows are dropped.
        """
        self._prefix = f"[{_title(label)}] " if label else ""
        self._print = print_fn
        self._serialize = serialize_fn
        self._time_delta = time_delta
        self._printed_at = -np.inf

    def write(self, data: LoggingData) -> None:
        """Prints `data`, or drops them without a look if it is too early."""
        now = time.monotonic()
        if now - self._printed_at >= self._time_delta:
            self._print(f"{self._prefix}{self._serialize(data)}")
            self._printed_at = now


class MemoryLogger:
    """Keeps rows in a list.

    >>> import numpy as np
    >>> from enn import loggers
    >>> logger = loggers.MemoryLogger()
    >>> logger.write({"loss": np.float32(0.25)})
    >>> logger.rows
    [{'loss': 0.25}]

    Attributes:
      rows: the rows as dictionaries of Python numbers, strings and lists.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, data: LoggingData) -> None:
        """Appends `data` to `rows`."""
        self.rows.append(plain(data))


class NullLogger:
    """Drops all rows.

    >>> from enn import loggers
    >>> loggers.NullLogger().write({"loss": 0.5})
    """

    def write(self, data: LoggingData) -> None:
        """Does nothing with `data`."""


class CsvLogger:
    """Appends rows to a CSV file, which is complete after every row.

    The first row makes the header. A row with new columns rewrites the file with a
    longer header, in which earlier rows have empty cells; a row without a column
    leaves its cell empty. An existing file is continued. Only one logger at a time
    may write to a file.

    >>> import pathlib
    >>> from enn import loggers
    >>> logger = loggers.CsvLogger("run/log.csv")
    >>> logger.write({"step": 1, "loss": 0.25})
    >>> pathlib.Path("run/log.csv").read_text().split()
    ['step,loss', '1,0.25']
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Continues `path` or, with the first row, creates it and its directory."""
        self._path = pathlib.Path(path)
        self._columns: list[str] = []
        if self._path.exists() and self._path.stat().st_size:
            self._columns, _ = self._read()
            self._end_last_line()

    def write(self, data: LoggingData) -> None:
        """Appends `data` to the file; arrays become lists."""
        row = {name: _shorten(value) for name, value in plain(data).items()}
        if not row.keys() <= set(self._columns):
            self._add_columns([name for name in row if name not in self._columns])
        with self._path.open("a", newline="") as file:
            self._writer(file).writerow(row)

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, lineterminator="\n")

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        with self._path.open(newline="") as file:
            reader = csv.DictReader(file, restval="")
            return list(reader.fieldnames or []), list(reader)

    def _end_last_line(self) -> None:
        """Keeps a row that was cut short from swallowing the next one."""
        if not self._path.read_text().endswith("\n"):
            with self._path.open("a") as file:
                file.write("\n")

    def _add_columns(self, names: list[str]) -> None:
        rows = self._read()[1] if self._columns else []
        self._columns += names
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Replaced in one step, so that no crash leaves half a file.
        longer = self._path.with_name(f"{self._path.name}.new")
        with longer.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)
        longer.replace(self._path)


class JsonLinesLogger:
    """Appends rows to a file of JSON, one a line, complete after every row.

    An existing file is continued: a line that was cut short is taken off, and steps
    never go back. A resumed run repeats rows from the save it starts at; those that
    the file has already are not written again. NaN and infinity are written as Python
    and pandas do. Only one logger at a time may write to a file.

    >>> import pathlib
    >>> import jax.numpy as jnp
    >>> from enn.loggers import JsonLinesLogger
    >>> JsonLinesLogger("log.jsonl").write({"step": 1, "loss": jnp.array(0.5)})
    >>> JsonLinesLogger("log.jsonl").write({"step": 2, "loss": jnp.array(0.25)})
    >>> print(pathlib.Path("log.jsonl").read_text().strip())
    {"step": 1, "loss": 0.5}
    {"step": 2, "loss": 0.25}
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Continues `path` or, with the first row, creates it and its directory.

        Raises:
          ValueError: if `path` holds something else than rows.
        """
        self._path = pathlib.Path(path)
        steps = self._read() if self._path.exists() else {}
        last = max((step for step in steps.values() if step is not None), default=None)
        self._steps = _Steps(last)
        self._last_lines = {line for line, step in steps.items() if step == last}

    def write(self, data: LoggingData) -> None:
        """Appends `data` to the file; what JSON does not have becomes text."""
        row = plain(data)
        line = json.dumps(row, default=str)
        is_new = row.get("step") is None or line not in self._last_lines
        if self._steps.admit(row.get("step")) and is_new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def _read(self) -> dict[str, int | None]:
        """Returns the steps of whole lines, and takes off what follows them."""
        content = self._path.read_bytes()
        num_bytes = content.rfind(b"\n") + 1
        steps: dict[str, int | None] = {}
        for number, line in enumerate(content[:num_bytes].decode().splitlines(), 1):
            try:
                steps[line] = dict(json.loads(line)).get("step")
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self._path}, line {number}: no row.") from error
        os.truncate(self._path, num_bytes)
        return steps


class TensorBoardLogger:
    """Draws the numbers of rows in TensorBoard, by tensorboardX.

    Strings name the curves: the loss of a row with `dataset` "train" is `train/loss`,
    and that of run 3 of `ManyExperiments` is `train/run_3/loss`. Entries of lists have
    curves of their own; flags are left out.

    In a directory that has events the first row takes the place of all at its step or
    later, so that the curves of a resumed run never go back. Not run as a
    test, since its package is an extra:

        logger = TensorBoardLogger("runs/ensemble")
        experiment = supervised.Experiment(..., logger=logger)
    """

    def __init__(self, directory: str | os.PathLike[str]):
        """Writes into `directory`, which `tensorboard --logdir` shows.

        Raises:
          ImportError: without tensorboardX, which the extra `tensorboard` installs.
        """
        self._package = _extras.require("tensorboardX", "tensorboard")
        self._directory = os.fspath(directory)
        self._writer: Any = None
        self._steps = _Steps()

    def write(self, data: LoggingData) -> None:
        """Adds the numbers of `data`."""
        step, numbers = _curves(data)
        if self._steps.admit(step):
            if self._writer is None:
                # Its files are named by the second: another one would be overwritten.
                self._writer = self._package.SummaryWriter(
                    self._directory,
                    purge_step=step,
                    filename_suffix=f".{time.time_ns()}",
                )
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, step)
            self._writer.flush()

    def close(self) -> None:
        """Closes the file of events."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Logs the numbers of rows to Weights & Biases or, like it, to trackio.

    Curves are named as in `TensorBoardLogger`. Continued with the `id` (trackio: the
    `name`) that it had and `resume="allow"`, a run's steps never go back: earlier ones
    are not logged again, offline too. Not run as a test, since its package is an extra:

        logger = WandbLogger(project="enn", id="ensemble", resume="allow")
        logger = WandbLogger("trackio", project="enn", name="ensemble", resume="allow")

    Attributes:
      run: what `init` of the library returned.
    """

    def __init__(self, library: str = "wandb", **settings: Any):
        """Starts a run, or continues one.

        Args:
          library: "wandb" or "trackio".
          **settings: arguments of its `init`, such as `project` and `mode="offline"`.

        Raises:
          ImportError: without the library, which the extra of its name installs.
          ValueError: for another library.
        """
        _checks.one_of("library", library, ["wandb", "trackio"])
        self.run = _extras.require(library, library).init(**settings)
        self._last_file: pathlib.Path | None = None
        if library == "trackio":
            last = self.run._next_step - 1
        elif not self.run.offline:
            last = self.run.step
        else:  # Each part of an offline run starts anew, in a directory of its own.
            directory = pathlib.Path(self.run.dir)
            self._last_file = directory / "enn_last_step.txt"
            parts = directory.parents[1].glob(f"*-{self.run.id}")
            files = [part / directory.name / self._last_file.name for part in parts]
            last = max((int(f.read_text()) for f in files if f.exists()), default=0)
        self._steps = _Steps(last)

    def write(self, data: LoggingData) -> None:
        """Logs the numbers of `data`."""
        step, numbers = _curves(data)
        if self._steps.admit(step):
            self.run.log(numbers, step=step)
            if self._last_file is not None and step is not None:
                self._last_file.write_text(f"{step}")

    def close(self) -> None:
        """Finishes the run."""
        self.run.finish()


class MlflowLogger:
    """Logs the numbers of rows as metrics of an MLflow run.

    Curves are named as in `TensorBoardLogger`. Those of a run that is continued by its
    `run_id` never go back: earlier steps are not logged again. Not run as a test, since
    its package is an extra:

        logger = MlflowLogger(experiment="enn", tracking_uri="sqlite:///mlflow.db")
        resumed = MlflowLogger(logger.run_id, tracking_uri="sqlite:///mlflow.db")

    Attributes:
      run_id: the run; keep it to go on with.
    """

    def __init__(
        self,
        run_id: str | None = None,
        *,
        experiment: str = "Default",
        tracking_uri: str | None = None,
    ):
        """Starts a run, or continues one.

        Args:
          run_id: a run to continue; by default one is made.
          experiment: name of the experiment that a new run belongs to, made if there
            is none.
          tracking_uri: where MLflow keeps runs, such as `sqlite:///mlflow.db`; by
            default as MLflow is set.

        Raises:
          ImportError: without MLflow, which the extra `mlflow` installs.
        """
        self._entities = _extras.require("mlflow.entities", "mlflow")
        mlflow = _extras.require("mlflow", "mlflow")
        self._client = mlflow.MlflowClient(tracking_uri)
        last = None
        if run_id is None:
            found = self._client.get_experiment_by_name(experiment)
            group = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(experiment)
            )
            run_id = self._client.create_run(group).info.run_id
        else:
            last = max(
                (
                    metric.step
                    for name in self._client.get_run(run_id).data.metrics
                    for metric in self._client.get_metric_history(run_id, name)
                ),
                default=None,
            )
        self.run_id: str = run_id
        self._steps = _Steps(last)

    def write(self, data: LoggingData) -> None:
        """Logs the numbers of `data`."""
        step, numbers = _curves(data)
        if self._steps.admit(step):
            now = int(time.time() * 1000)
            self._client.log_batch(
                self.run_id,
                [
                    self._entities.Metric(name, number, now, step or 0)
                    for name, number in numbers.items()
                ],
            )

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self.run_id)


def make_default_logger(label: str, time_delta: float = 0.0) -> TerminalLogger:
    """Returns a logger that prints to the terminal.

    >>> from enn import loggers
    >>> loggers.make_default_logger("my_run").write({"loss": 0.5, "step": 3})
    [My Run] Loss = 0.500 | Step = 3
    """
    return TerminalLogger(label=label, time_delta=time_delta)


class _Steps:
    """Tells which rows may be written, for steps never to go back.

    Attributes:
      last: the last step that was admitted; None before any.
    """

    def __init__(self, last: int | None = None):
        self.last = last
        self._warned = False

    def admit(self, step: int | None) -> bool:
        if step is not None and self.last is not None and step < self.last:
            if not self._warned:
                warnings.warn(
                    f"Rows of steps before {self.last} are there already, and are not "
                    "written again; a run of its own needs a place of its own.",
                    stacklevel=3,
                )
                self._warned = True
            return False
        self.last = self.last if step is None else step
        return True


def _curves(data: LoggingData) -> tuple[int | None, dict[str, float]]:
    """Returns the step of a row, and its numbers by the names of their curves."""
    row = plain(data)
    step, run = row.pop("step", None), row.pop("run", None)
    labels = [value for value in row.values() if isinstance(value, str)]
    labels += [] if run is None else [f"run_{run}"]
    return step, {"/".join([*labels, name]): v for name, v in _numbers(row)}


def _numbers(entries: LoggingData) -> Iterator[tuple[str, float]]:
    for name, value in entries.items():
        if isinstance(value, list):
            value = {str(i): entry for i, entry in enumerate(value)}
        if isinstance(value, Mapping):
            yield from ((f"{name}/{part}", v) for part, v in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _fetch(values: LoggingData) -> dict[str, Any]:
    """The row with its JAX arrays in host memory, moved there at once."""
    arrays = {name: v for name, v in values.items() if isinstance(v, jax.Array)}
    return {**values, **jax.device_get(arrays)} if arrays else dict(values)


def _plain(value: Any) -> Any:
    """A value in host memory as Python has it."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, jax.Array):
        is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        value = np.asarray(jax.random.key_data(value) if is_key else value)
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    if value.dtype.kind == "V":  # NumPy has no Python number for JAX's own types.
        is_integer = jax.dtypes.issubdtype(value.dtype, np.integer)
        value = value.astype(np.int64 if is_integer else np.float64)
    return value.tolist()


def _shorten(value: Any) -> Any:
    """A number of single precision without the digits that Python's floats add."""
    with np.errstate(over="ignore"):
        is_single = isinstance(value, float) and np.float32(value) == value
    return str(np.float32(value)) if is_single else value


def _title(name: str) -> str:
    return name.replace("_", " ").title()


def _format(value: Any) -> str:
    if isinstance(value, (float, np.number)):
        return f"{value:.3f}"
    if isinstance(value, list):
        return f"[{', '.join(map(_format, value))}]"
    if np.shape(value) == () and _is_floating(value):
        return f"{float(value):.3f}"
    return str(value)


def _is_floating(value: Any) -> bool:
    # Unlike NumPy's, JAX's knows bfloat16.
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, np.floating)
