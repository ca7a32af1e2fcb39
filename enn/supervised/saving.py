"""Directories of saves: what a run needs to go on after it was killed.

A save is a directory that Orbax writes, with the digests of its files added last.
Without them it is unfinished and is never picked up; with them, damage shows.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from enn import _extras

_DIGESTS = "digests.json"
_NAME = re.compile(r"(\d+)-step-(\d+)")


@dataclasses.dataclass(frozen=True, order=True)
class _Save:
    number: int
    step: int
    path: pathlib.Path


def saved_steps(path: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of the finished saves in a directory, the latest save last.

    Args:
      path: directory given to `save` or `train`; it need not exist.
    """
    return [save.step for save in _finished(resolve(path))]


def resolve(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the absolute path, once it is clear that Orbax is installed."""
    _orbax()
    return pathlib.Path(path).expanduser().resolve()


def write(
    root: pathlib.Path, step: int, state: Any, about: dict[str, Any], keep: int
) -> None:
    """Adds a save, then removes all but the last `keep`.

    Every process calls this; all must see the directory.

    Args:
      root: directory of saves.
      step: the step, of which any earlier save is removed.
      state: arrays, each sharded or the same in every process.
      about: further entries, of JSON.
      keep: how many saves to keep.
    """
    ocp = _orbax()
    earlier = _finished(root)
    number = earlier[-1].number + 1 if earlier else 1
    save = _Save(number, step, root / f"{number:06d}-step-{step}")
    if jax.process_index() == 0:
        root.mkdir(parents=True, exist_ok=True)
        for path in _unfinished(root):
            shutil.rmtree(path)
    arrays = {name: _as_array(leaf) for name, leaf in _named(state).items()}
    about = about | {"step": step, "arrays": _describe(arrays)}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            save.path,
            ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
        )
    if jax.process_index() == 0:
        _finish(save)
        others = [other for other in earlier if other.step != step]
        for other in {*earlier} - {*others[max(len(others) + 1 - keep, 0) :]}:
            (other.path / _DIGESTS).unlink()  # First: from here on it is unfinished.
            shutil.rmtree(other.path)
    multihost_utils.sync_global_devices(f"enn save {number}")


def read(root: pathlib.Path, step: int | None, like: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the state and the further entries of a save.

    Args:
      root: directory of saves.
      step: which save, or None for the latest.
      like: state of the same structure, shapes and types; arrays are placed as its.

    Raises:
      FileNotFoundError: if there is no finished save.
      ValueError: if there is none of `step`, it is damaged, or of another state. The
        message names a save that can be restored, if there is one.
    """
    saves = _finished(root)
    if not saves:
        raise FileNotFoundError(f"{root} holds no finished save.")
    chosen = [save for save in saves if step in (None, save.step)][-1:]
    if not chosen:
        steps = ", ".join(str(save.step) for save in saves)
        raise ValueError(f"{root} holds no save of step {step}, but of {steps}.")
    try:
        return _read(chosen[0], like)
    except ValueError as error:
        others = [save for save in reversed(saves) if save not in chosen]
        good = next((save.step for save in others if _is_good(save, like)), None)
        hint = (
            "No other save there can be restored either."
            if good is None
            else f"The save of step {good} is good: restore(path, step={good})."
        )
        raise ValueError(
            f"The save of step {chosen[0].step} in {root} {error}. {hint}"
        ) from error


def wrap_key(like: Any, data: Any) -> Any:
    """Returns the data of a random key as a key of the kind of `like`."""
    if not _is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def _orbax() -> Any:
    return _extras.require("orbax.checkpoint", "checkpoints")


def _finished(root: pathlib.Path) -> list[_Save]:
    """The finished saves in the order in which they were made."""
    return sorted(
        _Save(int(match[1]), int(match[2]), digests.parent)
        for digests in root.glob(f"*/{_DIGESTS}")
        if (match := _NAME.fullmatch(digests.parent.name))
    )


def _unfinished(root: pathlib.Path) -> list[pathlib.Path]:
    finished = [save.path for save in _finished(root)]
    return [
        path
        for path in root.iterdir()
        if _NAME.match(path.name) and path not in finished
    ]


def _finish(save: _Save) -> None:
    """Writes the digests in one go, which makes the save count."""
    partial = save.path / f"{_DIGESTS}.partial"
    partial.write_text(json.dumps(_digests(save.path)))
    partial.rename(save.path / _DIGESTS)


def _digests(path: pathlib.Path) -> dict[str, str]:
    digests = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith(_DIGESTS):
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[file.relative_to(path).as_posix()] = digest
    return digests


def _read(save: _Save, like: Any) -> tuple[Any, dict[str, Any]]:
    """Reads one save; raises ValueError with what is wrong with it."""
    _check_digests(save)
    ocp = _orbax()
    arrays = {name: _as_array(leaf) for name, leaf in _named(like).items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        about = checkpointer.restore(
            save.path, ocp.args.Composite(about=ocp.args.JsonRestore())
        ).about
        _check_same(about["arrays"], _describe(arrays))
        restored = checkpointer.restore(
            save.path,
            ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(_abstract, arrays))
            ),
        ).state
    leaves = [_place(leaf, restored[name]) for name, leaf in _named(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), about


def _is_good(save: _Save, like: Any) -> bool:
    try:
        _read(save, like)
    except ValueError:
        return False
    return True


def _check_digests(save: _Save) -> None:
    try:
        expected = json.loads((save.path / _DIGESTS).read_bytes())
    except ValueError:
        raise ValueError(f"is damaged: {_DIGESTS} is not JSON") from None
    if not isinstance(expected, dict):
        raise ValueError(f"is damaged: {_DIGESTS} holds no digests")
    digests = _digests(save.path)
    for name in sorted({*expected, *digests}):
        if name not in digests:
            raise ValueError(f"is damaged: {name} is missing")
        if name not in expected:
            raise ValueError(f"is damaged: {name} was added")
        if digests[name] != expected[name]:
            raise ValueError(f"is damaged: {name} has changed")


def _check_same(saved: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises ValueError that names the first array that differs."""
    for name in [*expected, *saved]:
        if saved.get(name) != expected.get(name):
            raise ValueError(
                f"is of another architecture or optimiser: {name} is "
                f"{saved.get(name, 'absent')} there and "
                f"{expected.get(name, 'absent')} in this experiment"
            )


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their paths."""
    return {
        jax.tree_util.keystr(path).removeprefix("."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _describe(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{a.dtype}{list(a.shape)}" for name, a in arrays.items()}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _as_array(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        return leaf
    return np.asarray(leaf, jnp.result_type(leaf))  # The type it gets in training.


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    sharding = array.sharding if isinstance(array, jax.Array) else None
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _place(leaf: Any, restored: Any) -> Any:
    """Returns a restored array as the kind of JAX array that `leaf` is or becomes."""
    if not (isinstance(leaf, jax.Array) and leaf.committed):
        restored = jnp.asarray(np.asarray(restored))
    return wrap_key(leaf, restored)
