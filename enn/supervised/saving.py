"""Saves: what a run needs to continue with the same numbers after it was killed.

A save is a directory that Orbax writes, with the digests of its files added last.
Without them it is unfinished and is never picked up; with them, damage shows.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from enn import _checks, _extras

_DIGESTS = "digests.json"
_NAME = re.compile(r"(\d+)-step-(\d+)")
_POSITION_METHODS = (("state", "restore"), ("get_state", "set_state"))
_DATA_HINT = "restore(..., data=False) leaves data where they are."


@dataclasses.dataclass(frozen=True, order=True)
class _Save:
    number: int
    step: int
    path: pathlib.Path


def check_schedule(save_dir: Any, save_every: int | None) -> None:
    """Raises ValueError for saves at an interval that is no int >= 1, or nowhere."""
    if save_every is not None:
        _checks.positive_int("save_every", save_every)
        if save_dir is None:
            raise ValueError("save_every needs save_dir, where to save.")


class Saves:
    """Directories of saves, which belong to the run that made or restored them.

    Args:
      datasets: all data sets of the run, and whatever else has a position to save, by
        what messages call them.
    """

    def __init__(self, datasets: Mapping[str, Iterator[Any]]):
        self._datasets = datasets
        # For each directory the numbers of the saves that this run has behind it.
        self._behind: dict[pathlib.Path, list[int]] = {}

    def check(self, path: str | os.PathLike[str], keep: int) -> pathlib.Path:
        """Returns the directory of saves, if this run may save there."""
        _checks.positive_int("keep", keep)
        root = _resolve(path)
        if root not in self._behind and (steps := saved_steps(root)):
            raise ValueError(
                f"{root} holds saves of another run, the last of step {steps[-1]}: "
                "restore it first, or save elsewhere."
            )
        for name, dataset in self._datasets.items():
            if not has_position(dataset):
                warnings.warn(
                    f"{name}, a {type(dataset).__name__}, cannot report its position: "
                    "it has no methods state and restore, or get_state and set_state. "
                    "Only restore(..., data=False) will work.",
                    stacklevel=4,
                )
        return root

    def write(
        self,
        root: pathlib.Path,
        step: int,
        state: Any,
        key: chex.PRNGKey,
        probe: Any,
        keep: int,
    ) -> None:
        """Adds a save to a directory that `check` returned, and removes old ones.

        After going back to an earlier save, those that lay ahead of it are removed
        before any that the run has behind it.
        """
        about = {
            "probe": probe,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "key_impl": _key_impl(key),
            "data": dump_positions(self._datasets),
        }
        earlier = _finished(root)
        behind = self._behind.setdefault(root, [])
        others = sorted(
            [save for save in earlier if save.step != step],
            key=lambda save: (save.number in behind, save.number),
        )
        kept = others[max(len(others) + 1 - keep, 0) :]
        number = earlier[-1].number + 1 if earlier else 1
        save = _Save(number, step, root / f"{number:06d}-step-{step}")
        _write(save, state, about, [save for save in earlier if save not in kept])
        behind.append(number)

    def read(
        self,
        path: str | os.PathLike[str],
        step: int | None,
        data: bool,
        like: Any,
        types: Sequence[Any],
        key: chex.PRNGKey,
        check_probe: Callable[[Any, Any], None],
    ) -> tuple[int, Any, chex.PRNGKey]:
        """Returns step, state and key of a save; takes the data to where they were.

        Args:
          path: directory of saves.
          step: which save, or None for the latest.
          data: whether to take the data to where they were.
          like: state of the same structure and shapes; arrays are placed as its.
          types: states of the shapes and types that the saved one may have.
          key: a key of the same kind.
          check_probe: raises ValueError, for the probe of a save and its state, if they
            are of another network.

        Raises:
          FileNotFoundError: if `path` holds no finished save.
          ValueError: if there is none of `step`, it is damaged, or of another state,
            network or kind of key; or data cannot go to where they were.
        """
        root = _resolve(path)
        read = functools.partial(
            _read, like=like, types=types, key=key, check_probe=check_probe
        )
        save, state, about = _read_any(root, step, read)
        if about.get("probe") is None:
            warnings.warn(
                f"The save of step {save.step} in {root} holds no predictions, like "
                "those of earlier versions: whether the network's prior functions and "
                "whatever else is not among its parameters are those of the saved run "
                "could not be checked.",
                stacklevel=4,
            )
        key = _wrap_key(key, jnp.array(about["key"], jnp.uint32))
        if data:  # Last: what fails before leaves all as it was.
            restore_positions(self._datasets, about["data"])
        known = self._behind.get(root, [])
        if save.number in known:
            self._behind[root] = [number for number in known if number <= save.number]
        else:
            self._behind[root] = _numbers_behind(save, _finished(root))
        return about["step"], state, key


def saved_steps(path: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of the finished saves in a directory, the latest save last.

    >>> from enn import networks, supervised
    >>> test = supervised.make_test_experiment(regression=True)
    >>> experiment = test.experiment_ctor(networks.MLPDropoutENN([1]))
    >>> experiment.save("run")
    >>> supervised.saved_steps("run"), supervised.saved_steps("no_run")
    ([0], [])

    Args:
      path: directory given to `save` or `train`; it need not exist.
    """
    return [save.step for save in _finished(_resolve(path))]


def _resolve(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the absolute path, once it is clear that Orbax is installed."""
    _orbax()
    return pathlib.Path(path).expanduser().resolve()


def _write(
    save: _Save, state: Any, about: dict[str, Any], removed: Sequence[_Save]
) -> None:
    """Writes a save, then removes others.

    Every process calls this; all must see the directory.

    Args:
      save: what to call it.
      state: arrays, each sharded or the same in every process.
      about: further entries, of JSON.
      removed: the saves to remove.
    """
    ocp = _orbax()
    root = save.path.parent
    if jax.process_index() == 0:
        root.mkdir(parents=True, exist_ok=True)
        for path in _unfinished(root):
            shutil.rmtree(path)
    arrays = {name: _as_array(leaf) for name, leaf in _named(state).items()}
    keys = {name: _key_impl(k) for name, k in _named(state).items() if _is_key(k)}
    about |= {"step": save.step, "arrays": _describe(arrays), "state_key_impls": keys}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            save.path,
            ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
        )
    if jax.process_index() == 0:
        _finish(save)
        for other in removed:
            (other.path / _DIGESTS).unlink()  # First: from here on it is unfinished.
            shutil.rmtree(other.path)
    multihost_utils.sync_global_devices(f"enn save {save.number}")


def _read_any(
    root: pathlib.Path,
    step: int | None,
    read: Callable[[_Save], tuple[Any, dict[str, Any]]],
) -> tuple[_Save, Any, dict[str, Any]]:
    """Returns a save, its state and its further entries; see `Saves.read`.

    The message of an error names a save that can be restored, if there is one.
    """
    saves = _finished(root)
    if not saves:
        raise FileNotFoundError(f"{root} holds no finished save.")
    chosen = [save for save in saves if step in (None, save.step)][-1:]
    if not chosen:
        steps = ", ".join(str(save.step) for save in saves)
        raise ValueError(f"{root} holds no save of step {step}, but of {steps}.")
    try:
        return chosen[0], *read(chosen[0])
    except ValueError as error:
        others = [save for save in reversed(saves) if save not in chosen]
        good = next((save.step for save in others if _succeeds(read, save)), None)
        hint = (
            "No other save there can be restored either."
            if good is None
            else f"The save of step {good} is good: restore(path, step={good})."
        )
        raise ValueError(
            f"The save of step {chosen[0].step} in {root} {error}. {hint}"
        ) from error


def _wrap_key(like: Any, data: Any) -> Any:
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


def _read(
    save: _Save,
    like: Any,
    types: Sequence[Any],
    key: chex.PRNGKey,
    check_probe: Callable[[Any, Any], None],
) -> tuple[Any, dict[str, Any]]:
    """Reads one save; raises ValueError with what is wrong with it."""
    _check_digests(save)
    ocp = _orbax()
    leaves = _named(like)
    arrays = {name: _as_array(leaf) for name, leaf in leaves.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        about = checkpointer.restore(
            save.path, ocp.args.Composite(about=ocp.args.JsonRestore())
        ).about
        saved = about["arrays"]
        good = [t for t in map(_describe_abstract, types) if t == saved]
        _check_key("experiment.rng", about.get("key_impl"), key)
        for name, impl in about.get("state_key_impls", {}).items():
            if _is_key(leaves.get(name)):
                _check_key(name, impl, leaves[name])
        _check_same(saved, good[0] if good else _describe(arrays))
        if np.shape(about["key"]) != np.shape(jax.random.key_data(key)):
            raise ValueError(
                f"has a random key of {len(about['key'])} numbers, and this experiment "
                f"one of {_key_impl(key)}"
            )
        wanted = {
            name: jax.ShapeDtypeStruct(
                array.shape,
                jnp.dtype(saved[name].partition("[")[0]),
                sharding=getattr(array, "sharding", None),
            )
            for name, array in arrays.items()
        }
        restored = checkpointer.restore(
            save.path, ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        ).state
    placed = [_place(leaf, restored[name]) for name, leaf in leaves.items()]
    state = jax.tree.unflatten(jax.tree.structure(like), placed)
    if about.get("probe") is not None:
        check_probe(about["probe"], state)
    return state, about


def _succeeds(read: Callable[[_Save], Any], save: _Save) -> bool:
    try:
        read(save)
    except ValueError:
        return False
    return True


def _check_key(name: str, impl: str | None, key: chex.PRNGKey) -> None:
    """Raises ValueError unless a saved key is of the kind of `key`, if it says so."""
    if impl not in (None, _key_impl(key)):
        raise ValueError(
            f"has random keys of {impl} in {name}, and this experiment of "
            f"{_key_impl(key)}: set jax_default_prng_impl to {impl!r} before it is made"
        )


def _numbers_behind(save: _Save, saves: Sequence[_Save]) -> list[int]:
    """The saves that led up to `save`, judging by their names.

    One that a save of an earlier step follows was left behind by going back.
    """
    numbers, step = [], save.step + 1
    for other in sorted(saves, reverse=True):
        if other.number <= save.number and other.step < step:
            numbers, step = [other.number, *numbers], other.step
    return numbers


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


def _describe_abstract(tree: Any) -> dict[str, str]:
    """The same of a tree of shapes and types."""
    data = {
        name: jax.eval_shape(jax.random.key_data, leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for name, leaf in _named(tree).items()
    }
    return _describe(data)


def _key_impl(key: chex.PRNGKey) -> str:
    return str(jax.random.key_impl(key))


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


def _place(leaf: Any, restored: Any) -> Any:
    """Returns a restored array as the kind of JAX array that `leaf` is or becomes."""
    if not (isinstance(leaf, jax.Array) and leaf.committed):
        restored = jnp.asarray(np.asarray(restored))
    return _wrap_key(leaf, restored)


def dump_positions(datasets: Mapping[str, Iterator[Any]]) -> list[str]:
    """Returns the positions of those data sets that are resumable.

    Returns:
      One text per process: each has its own data.

    Raises:
      TypeError: if one is made of other things than JSON, bytes and NumPy arrays.
    """
    return _gather(json.dumps(_positions(datasets)))


def restore_positions(
    datasets: Mapping[str, Iterator[Any]], texts: Sequence[str]
) -> None:
    """Takes data sets to the positions of `dump_positions`: all of them, or none.

    Raises:
      ValueError: if one has no position there, or does not take it, or there are more
        or fewer processes than there were.
    """
    if len(texts) != jax.process_count():
        raise ValueError(
            f"Saved by {len(texts)} processes, each with data of its own, but there "
            f"are {jax.process_count()} now. {_DATA_HINT}"
        )
    positions = json.loads(texts[jax.process_index()])
    for name, dataset in datasets.items():
        if not has_position(dataset):
            raise ValueError(
                f"{name}, a {type(dataset).__name__}, takes no position: it needs "
                f"methods state and restore, or get_state and set_state. {_DATA_HINT}"
            )
        if name not in positions:
            raise ValueError(f"The save has no position for {name}. {_DATA_HINT}")
    before = _positions(datasets)
    try:
        for name, dataset in datasets.items():
            _set_position(name, dataset, positions[name])
    except ValueError:
        for name, dataset in datasets.items():
            _set_position(name, dataset, before[name])
        raise


def _positions(datasets: Mapping[str, Iterator[Any]]) -> dict[str, str]:
    positions = {}
    for name, dataset in datasets.items():
        methods = _position_methods(dataset)
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


def _set_position(name: str, dataset: Iterator[Any], position: str) -> None:
    _, set_position = _position_methods(dataset)
    try:
        set_position(json.loads(position, object_hook=_decode))
    except Exception as error:
        raise ValueError(f"{name} does not take its saved position: {error}") from error


def _position_methods(dataset: Iterator[Any]) -> Any:
    for names in _POSITION_METHODS:
        methods = [getattr(dataset, name, None) for name in names]
        if all(callable(method) for method in methods):
            return methods
    return None


def has_position(value: Any) -> bool:
    """Whether something reports and takes its position, as saves need it to."""
    return _position_methods(value) is not None


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"got {type(value).__name__}.")


def _decode(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["__bytes__"]) if "__bytes__" in value else value
