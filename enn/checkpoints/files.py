"""Parameters from the files of published checkpoints."""

import contextlib
import functools
import os
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from enn.checkpoints import downloads
from enn.checkpoints.unpickling import UnsafePickleError, load_arrays
from enn.networks.checkpoints import ParamsStateLoadFn

URL_PATH = "https://storage.googleapis.com/dm-enn"


def load_from_file(
    file_name: str,
    url_path: str | os.PathLike[str] = URL_PATH,
    sha256: str | None = None,
    allow: Mapping[str, Callable[..., Any]] | None = None,
) -> ParamsStateLoadFn:
    """Returns a function that loads parameters and state from a published file.

    The file is `url_path/file_name.npzs`: one pickle of a dict with the keys `params`
    and `state`, each a nested mapping of arrays. It is downloaded and read when the
    function is called, and never unpickled as Python does it: see
    `enn.checkpoints.downloads` and `enn.checkpoints.unpickling`. All leaves become JAX
    arrays of the types that JAX has.

    Args:
      file_name: name of the file without its suffix.
      url_path: address of its folder, or a folder on this computer.
      sha256: hexadecimal SHA-256 that the file must have; by default that of its first
        download.
      allow: see `enn.checkpoints.unpickling.load_arrays`.

    Returns:
      Function that returns `(params, state)`. It raises OSError and ValueError as
      `downloads.read_url` does, and ValueError for a file that holds anything but
      arrays, or arrays in another place, naming the file.
    """
    address = f"{str(url_path).rstrip('/')}/{file_name}.npzs"
    return functools.partial(_load_params_and_state, address, sha256, allow)


def init_from_file(
    file_name: str,
    url_path: str | os.PathLike[str] = URL_PATH,
    sha256: str | None = None,
    allow: Mapping[str, Callable[..., Any]] | None = None,
) -> tuple[hk.Params, hk.State]:
    """Returns what the function of `load_from_file` loads."""
    return load_from_file(file_name, url_path, sha256, allow)()


def read_arrays(
    address: str,
    sha256: str | None = None,
    allow: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
    """Returns the NumPy arrays and plain containers in a published file.

    Args:
      address: URL of the file, or its path on this computer.
      sha256: as of `load_from_file`.
      allow: as of `load_from_file`.

    Raises:
      OSError: if the file cannot be had.
      ValueError: if it holds anything else, naming the file.
    """

    def read(content: bytes) -> Any:
        try:
            return load_arrays(content, allow)
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{address}: {error}") from error

    url = urllib.parse.urlsplit(address)
    if "://" in address and url.scheme != "file":
        return downloads.read_url(address, read, sha256)
    path = urllib.request.url2pathname(url.path) if url.scheme == "file" else address
    content = pathlib.Path(path).read_bytes()
    downloads.check_sha256(address, content, sha256)
    return read(content)


def _load_params_and_state(
    address: str, sha256: str | None, allow: Mapping[str, Callable[..., Any]] | None
) -> tuple[hk.Params, hk.State]:
    content = read_arrays(address, sha256, allow)
    if not isinstance(content, dict) or not {"params", "state"} <= set(content):
        raise ValueError(f"{address} has no dict with keys 'params' and 'state'.")

    def to_jax(path: Any, leaf: Any) -> jax.Array:
        if not isinstance(leaf, str | bytes | bytearray):
            with contextlib.suppress(OverflowError):  # Integers may be of any size.
                return jnp.array(leaf)
        where = jax.tree_util.keystr(path)
        raise ValueError(f"{address}: {where} must be an array, got {leaf!r:.80}.")

    tree = {name: content[name] for name in ("params", "state")}
    loaded = jax.tree.map_with_path(to_jax, tree)
    return loaded["params"], loaded["state"]
