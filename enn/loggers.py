"""Loggers: where the rows of metrics that training writes go."""

import csv
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO, runtime_checkable

import jax
import numpy as np

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
    """
    row = sorted(_fetch(values).items())
    return " | ".join(f"{_title(name)} = {_format(value)}" for name, value in row)


class TerminalLogger:
    """Prints rows as text, at most one every `time_delta` seconds."""

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

    Attributes:
      rows: the rows as dictionaries of Python numbers, strings and lists.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, data: LoggingData) -> None:
        """Appends `data` to `rows`."""
        self.rows.append(plain(data))


class NullLogger:
    """Drops all rows."""

    def write(self, data: LoggingData) -> None:
        """Does nothing with `data`."""


class CsvLogger:
    """Appends rows to a CSV file, which is complete after every row.

    The first row makes the header. A row with new columns rewrites the file with a
    longer header, in which earlier rows have empty cells; a row without a column
    leaves its cell empty. An existing file is continued. Only one logger at a time
    may write to a file.
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


def make_default_logger(label: str, time_delta: float = 0.0) -> TerminalLogger:
    """Returns a logger that prints to the terminal."""
    return TerminalLogger(label=label, time_delta=time_delta)


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
