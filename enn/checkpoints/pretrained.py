"""Parameters of your own networks, in safetensors and JSON.

A folder holds `model.safetensors`, the arrays by their paths in the tree, and
`model.json`: the version of the layout, the tree of these names, the SHA-256 that the
file of arrays must have, a few predictions that tell the network from others, and the
name and arguments of what builds it. Neither can hold code.
"""

import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _extras, base
from enn.checkpoints import constructors
from enn.checkpoints.hub_downloads import ARRAYS, TREE, find_saved
from enn.networks.base import EnnArray
from enn.supervised import probes
from enn.supervised.base import check_network

_VERSION = 1
_TYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
}


def save_pretrained(
    path: str | os.PathLike[str],
    params: base.AnyTree,
    state: base.AnyTree | None = None,
    *,
    enn: EnnArray | None = None,
    inputs: Any = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Saves parameters and state in a folder, for `load_pretrained`.

    Existing files are replaced at once, when the new ones are complete.

    Predictions may depend on more than these: on prior functions, which are drawn from
    a seed, or on the frozen base of an epinet. With `enn` the save tells networks that
    differ in this apart.

    >>> import numpy as np
    >>> from enn import checkpoints
    >>> checkpoints.save_pretrained("slope", {"linear": {"w": np.array([2.0])}})
    >>> params, state = checkpoints.load_pretrained("slope")
    >>> params["linear"]["w"].tolist(), state
    ([2.0], {})
    >>> checkpoints.save_pretrained("slope", {"linear": {"w": "two"}})
    Traceback (most recent call last):
        ...
    ValueError: params linear w must be an array of numbers, got str.

    Args:
      path: the folder, made where there is none.
      params: nested mappings of arrays, at any depth, with names of any characters.
      state: the same of the network's state.
      enn: the network, of which a few predictions at made-up inputs are saved too.
      inputs: a batch of inputs, needed with `enn`: only shapes and types matter.
      config: how to build the network, for `load_enn`:
        `{"constructor": "MLPEnsembleMatchedPrior", "arguments": {...}}`, where the
        constructor is a function or class of `enn.networks`, or one that was given to
        `register_constructor`. With `inputs` it stands for `enn`.

    Raises:
      ImportError: without safetensors, which the extra `checkpoints` installs.
      ValueError: naming the place, for a leaf that is not an array of numbers, or of a
        type that safetensors lacks, a name that is not a string, or a container that
        is not a mapping; unless `enn` and `inputs` are given together; for a `config`
        that builds nothing.
      TypeError: for a `config` that is not JSON, or does not build a network.
    """
    if config is not None:
        config = constructors.as_json(config)
        built = constructors.build(config)
        enn = built if enn is None and inputs is not None else enn
    if (enn is None) != (inputs is None):
        raise ValueError("enn and inputs must be given together, or neither.")
    safetensors = _extras.require("safetensors.numpy", "checkpoints")
    arrays: dict[str, np.ndarray] = {}
    tree = _name_leaves({"params": params, "state": state or {}}, (), arrays)
    probe = None
    if enn is not None:
        probe = probes.record(enn, params, state or {}, inputs)
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.save(arrays)
    layout = {
        "version": _VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "tree": tree,
        "probe": probe,
        "config": config,
    }
    _replace(folder / ARRAYS, content)
    _replace(folder / TREE, json.dumps(layout, indent=1).encode())


def load_pretrained(
    path: str | os.PathLike[str],
    like: EnnArray | tuple[Any, Any] | None = None,
    inputs: Any = None,
    *,
    revision: str | None = None,
) -> tuple[hk.Params, hk.State]:
    """Returns the parameters and state that `save_pretrained` saved.

    From a folder, or from a repository of the Hugging Face hub, of which only the two
    files are fetched that `save_pretrained` writes. They are kept in the hub's cache,
    and come from there without a network and with `ENN_OFFLINE=1`.

    For a sampler: `EnnCheckpoint(name, functools.partial(load_pretrained, path), ...)`.

    >>> import jax, numpy as np
    >>> from enn import checkpoints, networks
    >>> enn = networks.MLPEnsembleMatchedPrior([4, 1], num_ensemble=2, seed=3)
    >>> x = np.ones([3, 2])
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> checkpoints.save_pretrained("mine", params, state, enn=enn, inputs=x)
    >>> loaded, state = checkpoints.load_pretrained("mine", like=enn)
    >>> other = networks.MLPEnsembleMatchedPrior([4, 1], num_ensemble=2, seed=4)
    >>> checkpoints.load_pretrained("mine", like=other)  # Of other prior functions
    Traceback (most recent call last):
        ...
    ValueError: mine is of another network: with the same parameters this one ...

    Args:
      path: the folder; or, where there is none of this name, `owner/name` of a
        repository.
      like: the network to compare with: it must predict what the saved one did. Or
        its parameters and state, or their shapes, of which only these are compared:
        `jax.eval_shape(enn.init, key, inputs, index)`. A warning says what could not
        be compared.
      inputs: a batch of inputs of the network, needed only where these are neither an
        array nor a dict of arrays.
      revision: commit, tag or branch of the repository, by default its main branch.
        Only the hash of a commit always gives the same network.

    Returns:
      `(params, state)`, nested dicts of JAX arrays of the types that were saved. Types
      that JAX only has with `jax_enable_x64` are NumPy arrays without it.

    Raises:
      FileNotFoundError: if there is no such folder, file, repository or revision.
      ConnectionError: if the hub cannot be reached, and its cache lacks the files.
      ImportError: without safetensors, which the extra `checkpoints` installs, or
        huggingface_hub, of the extra `hub`.
      ValueError: if a file is damaged, the two do not belong together, or the version
        is unknown; naming the first leaf, with both shapes, where the tree is not
        `like` the given one; and if the network predicts something else.
    """
    folder = find_saved(path, revision)
    layout, tree = _read(folder)
    if like is not None:
        _check_like(str(folder), tree, like, layout.get("probe"), inputs)
    return tree["params"], tree["state"]


def load_enn(
    path: str | os.PathLike[str], inputs: Any = None, *, revision: str | None = None
) -> tuple[EnnArray, hk.Params, hk.State]:
    """Returns a network that was saved with its `config`, ready to predict.

    No code is run that the files bring: only functions and classes of `enn.networks`
    and of `register_constructor` are called, with numbers, strings, lists and dicts.

    >>> import jax, numpy as np
    >>> from enn import checkpoints, networks
    >>> arguments = {"output_sizes": [4, 1], "num_ensemble": 2, "seed": 3}
    >>> config = {"constructor": "MLPEnsembleMatchedPrior", "arguments": arguments}
    >>> x, enn = np.ones([3, 2]), networks.MLPEnsembleMatchedPrior(**arguments)
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> checkpoints.save_pretrained("mine", params, state, inputs=x, config=config)
    >>> again, params, state = checkpoints.load_enn("mine")
    >>> out, same = (net.apply(params, state, x, 1)[0].preds for net in (enn, again))
    >>> bool((out == same).all())
    True

    Args:
      path: the folder or repository, as in `load_pretrained`.
      inputs: as in `load_pretrained`.
      revision: as in `load_pretrained`.

    Returns:
      `(enn, params, state)`.

    Raises:
      ConnectionError, FileNotFoundError, ImportError: as `load_pretrained` does.
      ValueError: as `load_pretrained` does; if the network was saved without `config`,
        or with a constructor that is not known here.
    """
    folder = find_saved(path, revision)
    layout, tree = _read(folder)
    if layout.get("config") is None:
        raise ValueError(
            f"{folder} was saved without config: build the network yourself, and call "
            "load_pretrained(path, like=enn)."
        )
    enn = constructors.build(layout["config"])
    if layout.get("probe") is not None:
        _check_like(str(folder), tree, enn, layout["probe"], inputs)
    return enn, tree["params"], tree["state"]


def _check_like(name: str, tree: Any, like: Any, probe: Any, inputs: Any) -> None:
    """Compares what was loaded with a network, as far as the save allows.

    Raises:
      ValueError: if they do not belong together.
      TypeError: if `like` is not what `load_pretrained` takes, or lacks `inputs`.
    """
    if isinstance(like, tuple):
        _check_shapes(name, tree, like)
        return _warn(name, "`like` is only shapes, not the network itself")
    check_network(like)
    if probe is not None:
        inputs = probes.make_inputs(probe, inputs)
    if inputs is not None:
        key = jax.random.key(0)
        _check_shapes(
            name, tree, jax.eval_shape(like.init, key, inputs, like.indexer(key))
        )
    if probe is None:
        return _warn(name, "it was saved without `enn`, or by an earlier version")
    try:
        probes.check(probe, like, tree["params"], tree["state"], inputs)
    except probes.ProbeError as error:
        raise ValueError(f"{name} {error}.") from None


def _check_shapes(name: str, tree: Any, variables: tuple[Any, Any]) -> None:
    params, state = variables
    _checks.same_shapes(name, tree, {"params": params, "state": state})


def _warn(name: str, reason: str) -> None:
    warnings.warn(
        f"{name}: whether prior functions, the base of an epinet and whatever else is "
        f"not among parameters are as they were could not be checked: {reason}.",
        stacklevel=4,
    )


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], Any]:
    """Returns the description in a folder, and the tree of its arrays."""
    safetensors = _extras.require("safetensors.numpy", "checkpoints")
    layout = _read_layout(folder / TREE)
    sha256, names = layout["sha256"], layout["tree"]
    file = folder / ARRAYS
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{file} is damaged, or belongs to another {TREE}.")
    try:
        arrays = safetensors.load_file(file)
        return layout, jax.tree.map(lambda name: _to_jax(arrays[name]), names)
    except Exception as error:  # safetensors raises of many kinds.
        raise ValueError(f"{file} cannot be read as {TREE} says: {error}.") from error


def _name_leaves(
    node: Any, path: tuple[str, ...], arrays: dict[str, np.ndarray]
) -> Any:
    """Returns the tree of the leaves' names, and puts the leaves into `arrays`."""
    where = " ".join(path)
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str):
                raise ValueError(f"{where}: a name must be a string, got {key!r}.")
        return {key: _name_leaves(node[key], (*path, key), arrays) for key in node}
    if isinstance(node, tuple) and len(path) == 1:
        raise ValueError(
            f"{where} must be a dict of arrays, got a tuple of {len(node)}: pass "
            "parameters and state one after the other."
        )
    if isinstance(node, list | tuple):
        raise ValueError(
            f"{where} must be a dict of arrays, got a {type(node).__name__}: name the "
            f"entries, such as {{str(i): p for i, p in enumerate({path[-1]})}}."
        )
    is_array = isinstance(node, jax.Array | np.ndarray | np.generic)
    kind = node.dtype.name if is_array else type(node).__name__
    if kind not in _TYPES:
        raise ValueError(f"{where} must be an array of numbers, got {kind}.")
    name = json.dumps(path)
    arrays[name] = np.asarray(node, order="C")
    return name


def _replace(file: pathlib.Path, content: bytes) -> None:
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(file)


def _read_layout(file: pathlib.Path) -> dict[str, Any]:
    content = file.read_bytes()
    try:
        layout = json.loads(content)
        version = layout["version"]
        if version == _VERSION:
            tree = {name: dict(layout["tree"][name]) for name in ("params", "state")}
            return {**layout, "tree": tree, "sha256": layout["sha256"]}
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not describe parameters: {error}.") from error
    raise ValueError(f"{file} has version {version!r}: only {_VERSION} is known.")


def _to_jax(array: np.ndarray) -> jax.Array | np.ndarray:
    fits = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if fits else array
