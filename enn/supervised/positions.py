"""Where iterators of data stand."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_METHODS = (("state", "restore"), ("get_state", "set_state"))


def is_resumable(dataset: Iterator[Any]) -> bool:
    """Whether an iterator tells its position and takes one back.

    It then has methods `state` and `restore`, as those in memory do, or `get_state`
    and `set_state`, as those of Grain do.
    """
    return _methods(dataset) is not None


def dump(datasets: Mapping[str, Iterator[Any]]) -> list[str]:
    """Returns the positions of those data sets that are resumable.

    Returns:
      A text for every process, which all have data of their own.

    Raises:
      TypeError: if one is made of other things than JSON, bytes and NumPy arrays.
    """
    return _gather(json.dumps(_positions(datasets)))


def restore(datasets: Mapping[str, Iterator[Any]], texts: Sequence[str]) -> None:
    """Takes data sets to the positions of `dump`: all of them, or none.

    Raises:
      ValueError: if one has no position there, or does not take it, or there are more
        or fewer processes than there were.
    """
    hint = "restore(..., data=False) leaves data where they stand."
    if len(texts) != jax.process_count():
        raise ValueError(
            f"Saved by {len(texts)} processes, each with data of its own, but there "
            f"are {jax.process_count()} now. {hint}"
        )
    positions = json.loads(texts[jax.process_index()])
    for name, dataset in datasets.items():
        if not is_resumable(dataset):
            raise ValueError(
                f"{name}, a {type(dataset).__name__}, takes no position: it needs "
                f"methods state and restore, or get_state and set_state. {hint}"
            )
        if name not in positions:
            raise ValueError(f"The save has no position for {name}. {hint}")
    before = _positions(datasets)
    try:
        for name, dataset in datasets.items():
            _set(name, dataset, positions[name])
    except ValueError:
        for name, dataset in datasets.items():
            _set(name, dataset, before[name])
        raise


def _positions(datasets: Mapping[str, Iterator[Any]]) -> dict[str, str]:
    positions = {}
    for name, dataset in datasets.items():
        methods = _methods(dataset)
        if methods is None:
            continue
        try:
            positions[name] = json.dumps(methods[0](), default=_encode)
        except TypeError as error:
            raise TypeError(
                f"{name} must give its position as JSON, bytes or NumPy arrays: {error}"
            ) from error
    return positions


def _gather(text: str) -> list[str]:
    """The texts of all processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(data))).ravel()
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:length].tobytes().decode()
        for row, length in zip(rows, lengths, strict=True)
    ]


def _set(name: str, dataset: Iterator[Any], position: str) -> None:
    _, set_position = _methods(dataset)
    try:
        set_position(json.loads(position, object_hook=_decode))
    except Exception as error:
        raise ValueError(f"{name} does not take its saved position: {error}") from error


def _methods(dataset: Iterator[Any]) -> Any:
    for names in _METHODS:
        methods = [getattr(dataset, name, None) for name in names]
        if all(callable(method) for method in methods):
            return methods
    return None


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"got {type(value).__name__}.")


def _decode(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["__bytes__"]) if "__bytes__" in value else value
