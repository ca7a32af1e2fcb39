"""Sweeps: many independent tasks, here or on other machines, that stop and resume.

Every task has a CSV file of its own, written whole or not at all. A sweep that was
killed is started again as it was, and runs only the tasks without a file. Nothing here
imports JAX before a task runs: workers configure it first.

Any `concurrent.futures.Executor` runs the tasks. For several machines Dask, of the
extra `cluster`, gives one:

    client = distributed.Client(address)
    executor = client.get_executor(pure=False, retries=2)

The client itself is not an executor, and `pure=True`, its default, would let equal
calls share one result. Workers need no shared disk: the driver alone writes. A
directory has one driver at a time.
"""

import collections
import concurrent.futures
import contextlib
import csv
import functools
import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from enn import _metadata

__all__ = ["Task", "load", "local_executor", "run_sweep"]

_Columns = dict[str, list[Any]]
_Result = tuple[dict[str, str], _Columns]

Task = Mapping[str, str | int | float | bool | None]
"""What tells one task from others: JSON scalars by name."""

_Named = tuple[pathlib.Path, Task]

_VERSIONS = ("enn_version", "jax_version")
_PROVENANCE = (*_VERSIONS, "device_kind")
_INTEGER = re.compile(r"-?(0|[1-9]\d*)")  # Not "007", which is a name.
_NUMBER = re.compile(_INTEGER.pattern + r"(\.\d+)?(e[+-]?\d+)?|-?inf|nan")
_WORKER_SETTINGS = {
    "NPROC": "1",  # Threads of XLA's pool.
    "JAX_COMPILATION_CACHE_DIR": "~/.cache/jax",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def run_sweep(
    run_one: Callable[[dict[str, Any]], Mapping[str, Any]],
    tasks: Iterable[Task],
    directory: str | os.PathLike[str],
    *,
    executor: concurrent.futures.Executor | None = None,
    progress: bool = True,
) -> list[pathlib.Path]:
    """Runs the tasks that have no file yet, and writes one for each that finishes.

    A file is named `{agent}-{first problem}-{hash}.csv` after the task's `agent` and
    the first entry of its `problems`, or `problem`, where it has them. Its columns are
    the task's entries, the versions of enn and jax and the kind of device that ran it,
    and then what `run_one` returned. A rerun gives the same bytes, but for columns
    named `*_seconds`, as long as `run_one` depends on its task alone.

    A task that fails does not stop the others, and is tried again by the next call.
    Ctrl-C cancels what has not begun.

    >>> from enn import sweeps
    >>> def square(task):
    ...     return {"n": [0, 1], "square": [0, task["scale"]]}
    >>> tasks = [{"scale": 2.5}, {"scale": 4.0}]
    >>> len(sweeps.run_sweep(square, tasks, "squares", progress=False))
    2
    >>> sorted(sweeps.load("squares")["square"].tolist())
    [0.0, 0.0, 2.5, 4.0]

    Args:
      run_one: takes a task and returns columns of equal length by name: numbers,
        strings, bools or None. An importable function where an executor pickles it.
      tasks: flat dicts of JSON scalars, all different. What compiles to one program is
        best one task.
      directory: where the files go; made if it does not exist.
      executor: what runs the tasks; None for this process.
      progress: whether to show a bar, with the last file written.

    Returns:
      The files of all tasks, in their order.

    Raises:
      TypeError: for a task that is not a flat dict of JSON scalars.
      ValueError: for equal tasks, entries named as a column that every file has, NaN
        in a task, and a file in place of a task's that is not of this task.
      RuntimeError: once all have run, if some failed, naming them and their errors.
    """
    tasks = [_checked(task) for task in tasks]
    root = pathlib.Path(directory).expanduser()
    paths = [root / _file_name(task) for task in tasks]
    named = dict(zip(paths, tasks, strict=True))
    if len(named) < len(paths):
        twice = next(path for path, n in collections.Counter(paths).items() if n > 1)
        raise ValueError(f"Tasks must all be different, got {named[twice]} twice.")
    missing = []
    for path, task in named.items():
        if path.exists():
            _check_file(path, task)
        else:
            missing.append((path, task))
    root.mkdir(parents=True, exist_ok=True)

    errors: dict[str, Exception] = {}
    done = len(paths) - len(missing)
    bar = tqdm.tqdm(total=len(paths), initial=done, disable=not progress, unit="task")
    calls = _results(functools.partial(_call, run_one), missing, executor)
    with bar, contextlib.closing(calls):
        for (path, task), result in calls:
            if isinstance(result, Exception):
                errors[path.name] = result
            else:
                _write(path, task, *result)
            bar.set_postfix_str(path.stem)
            bar.update()
    if errors:
        lines = [f"  {name}: {error!r}" for name, error in errors.items()]
        raise RuntimeError(
            f"{len(errors)} of {len(paths)} tasks failed; run the sweep again to try "
            "only these:\n" + "\n".join(lines)
        ) from next(iter(errors.values()))
    return paths


def load(
    directory: str | os.PathLike[str], *, mixed_versions: bool = False
) -> dict[str, np.ndarray]:
    """Returns all rows that a sweep has written so far, by column.

    `pandas.DataFrame(load(directory))` makes a table of them. Rows come in the order of
    file names. A column is of bools, integers or floats if all its entries are, and
    else of strings; where a file lacks a column, or the entry was None, it holds NaN
    among numbers and `""` among strings.

    >>> from enn import sweeps
    >>> def run_one(task):
    ...     return {"n": [1, 2]}
    >>> tasks = [{"seed": 0}, {"seed": 1}]
    >>> files = sweeps.run_sweep(run_one, tasks, "out", progress=False)
    >>> table = sweeps.load("out")
    >>> sorted(table["seed"].tolist()), sorted(table["n"].tolist())
    ([0, 0, 1, 1], [1, 1, 2, 2])

    Args:
      directory: that of `run_sweep`.
      mixed_versions: whether files may come from several versions of enn or jax.

    Raises:
      FileNotFoundError: if there are no files.
      ValueError: for a file that `run_sweep` did not write, and for mixed versions
        unless they are allowed.
    """
    root = pathlib.Path(directory).expanduser()
    rows: list[dict[str, str]] = []
    seen: dict[tuple[str, ...], str] = {}
    for path in sorted(root.glob("*.csv")):
        new = _read(path)[1]
        seen.setdefault(tuple(new[0][name] for name in _VERSIONS), path.name)
        rows += new
    if not rows:
        raise FileNotFoundError(f"{root} holds no rows of a sweep.")
    if len(seen) > 1 and not mixed_versions:
        versions = "; ".join(
            f"enn {enn} and jax {jax} in {name}" for (enn, jax), name in seen.items()
        )
        raise ValueError(
            f"{root} mixes versions: {versions}. load(..., mixed_versions=True) reads "
            "them all the same."
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name, "") for row in rows]) for name in names}


def local_executor(num_workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """Returns an executor of processes on this machine, of one thread each.

    Processes are spawned, as JAX does not survive a fork; a script that uses them must
    keep its own start behind `if __name__ == "__main__":`. They share the compilation
    cache of `JAX_COMPILATION_CACHE_DIR`, by default `~/.cache/jax`, and end when this
    process does, however it ends. These lines of a script are not run as a test:

        if __name__ == "__main__":
            with sweeps.local_executor(4) as executor:
                sweeps.run_sweep(run_one, tasks, "results", executor=executor)

    Args:
      num_workers: number of processes.

    Raises:
      ValueError: unless `num_workers` is an integer >= 1.
    """
    if type(num_workers) is not int or num_workers < 1:
        raise ValueError(f"num_workers must be an integer >= 1, got {num_workers!r}.")
    return concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_worker,
    )


def _prepare_worker() -> None:
    """Configures JAX before it starts, which is with the first task."""
    for name, value in _WORKER_SETTINGS.items():
        os.environ.setdefault(name, os.path.expanduser(value))
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen=false {flags}"
    jax: Any = sys.modules.get("jax")
    if jax is not None:  # The user's script imported it, and it has read its settings.
        cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
        jax.config.update("jax_compilation_cache_dir", cache)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a killed driver would wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _call(
    run_one: Callable[[dict[str, Any]], Mapping[str, Any]], task: Task
) -> _Result:
    """Runs a task where it runs; returns with what, and its columns."""
    columns = run_one(dict(task))
    if not isinstance(columns, Mapping) or not columns:
        raise TypeError(f"run_one must return columns by name, got {columns!r}.")
    clashes = [name for name in columns if name in task or name in _PROVENANCE]
    if clashes:
        raise ValueError(f"run_one must not return columns named {clashes}.")
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(min(shapes)) != 1 or shapes == {(0,)}:
        raise ValueError(
            "Columns must have one length, of at least one row; got the shapes "
            f"{ {name: array.shape for name, array in arrays.items()} }."
        )
    import jax  # After the task has run, which may configure it.

    provenance = {
        "enn_version": _metadata.__version__,
        "jax_version": jax.__version__,
        "device_kind": jax.devices()[0].device_kind,
    }
    return provenance, {name: array.tolist() for name, array in arrays.items()}


def _results(
    call: Callable[[Task], _Result],
    missing: Sequence[_Named],
    executor: concurrent.futures.Executor | None,
) -> Generator[tuple[_Named, _Result | Exception], None, None]:
    """Yields files and tasks as they finish, each with its result or its error."""
    if executor is None:
        for path, task in missing:
            yield (path, task), _try(functools.partial(call, task))
        return
    futures: dict[concurrent.futures.Future[_Result], Any] = {}
    try:
        for path, task in missing:
            # Dask's executor takes keyword arguments for itself.
            futures[executor.submit(call, task)] = path, task
        for future in concurrent.futures.as_completed(list(futures)):
            yield futures.pop(future), _try(future.result)
    finally:
        for future in futures:
            future.cancel()


def _try(get: Callable[[], _Result]) -> _Result | Exception:
    try:
        return get()
    except Exception as error:
        return error


def _checked(task: Task) -> dict[str, Any]:
    if not isinstance(task, Mapping) or not task:
        raise TypeError(f"A task must be a dict of JSON scalars, got {task!r}.")
    for name, value in task.items():
        if type(name) is not str or not isinstance(value, str | int | float | None):
            raise TypeError(
                "A task must be a flat dict of JSON scalars (str, int, float, bool or "
                f"None) by name, got {value!r} for {name!r}."
            )
        if name in _PROVENANCE:
            raise ValueError(f"A task must have no entry {name!r}: all files have it.")
    return dict(task)


def _file_name(task: Task) -> str:
    text = json.dumps(task, sort_keys=True, allow_nan=False)
    problems = re.split(r"[\s,;]+", str(task.get("problems", task.get("problem", ""))))
    parts = [str(task.get("agent", "")), problems[0]]
    parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    return re.sub(r"[^\w.+=-]", "-", "-".join(filter(None, parts))) + ".csv"


def _write(
    path: pathlib.Path, task: Task, provenance: Mapping[str, str], columns: _Columns
) -> None:
    """Writes a file that is there whole or not at all, whenever the machine stops."""
    constant = [_text(value) for value in (*task.values(), *provenance.values())]
    part = path.with_name(f"{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*task, *provenance, *columns])
        for row in zip(*columns.values(), strict=True):
            writer.writerow([*constant, *map(_text, row)])
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _read(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and rows of a file of a sweep."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if not set(_PROVENANCE) <= set(header) or {*map(len, rows)} != {len(header)}:
        raise ValueError(f"{path} is not a file of enn.sweeps.run_sweep.")
    return header, [dict(zip(header, row, strict=True)) for row in rows]


def _check_file(path: pathlib.Path, task: Task) -> None:
    """Raises ValueError unless a file is of a task."""
    try:
        header, rows = _read(path)
    except ValueError as error:
        raise ValueError(f"{error} It is in place of the task {dict(task)}.") from None
    expected = {name: _text(value) for name, value in task.items()}
    found = {name: rows[0][name] for name in header[: header.index(_PROVENANCE[0])]}
    if found != expected:
        raise ValueError(f"{path} is of the task {found}, not of {expected}.")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _column(texts: list[str]) -> np.ndarray:
    """Returns the entries of a column as bools, integers, floats or else strings."""
    if set(texts) <= {"True", "False"}:
        return np.array([text == "True" for text in texts])
    entries = [text for text in texts if text]
    if not entries or not all(map(_NUMBER.fullmatch, entries)):
        return np.array(texts)
    read = int if all(map(_INTEGER.fullmatch, entries)) else float
    return np.array([read(text) if text else math.nan for text in texts])
