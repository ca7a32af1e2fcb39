"""IDX files: arrays of bytes as MNIST and Fashion-MNIST are published.

The layout is described at the end of http://yann.lecun.com/exdb/mnist: two zero bytes,
the type, the number of axes, the size of each axis in four bytes, and the numbers, all
big-endian.
"""

import gzip
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
_PARTS = ("images", "labels")
_GZIP = b"\x1f\x8b"


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the array in an IDX file, which may be compressed by gzip.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file, if it is damaged or of another kind.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        zero, kind, num_axes = struct.unpack_from(">HBB", content)
        dtype = np.dtype(_TYPES[kind])
        shape = struct.unpack_from(f">{num_axes}I", content, 4)
        size = math.prod(shape)
        start = 4 + 4 * num_axes
        if zero or len(content) != start + size * dtype.itemsize:
            raise ValueError(f"it must hold {list(shape)} numbers of {dtype.name}")
    except (OSError, EOFError, KeyError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is not a whole IDX file: {error}") from error
    array = np.frombuffer(content, dtype, size, start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def find_idx(source: Any, splits: Sequence[str]) -> tuple[pathlib.Path, ...] | None:
    """Returns the files of images and labels of a split, or None if a source has none.

    Args:
      source: a directory with files such as `train-images-idx3-ubyte.gz`, or pairs of
        files by split, `{"train": (images, labels), "test": ...}`.
      splits: candidate names of the split; the first that exists is used.
    """
    if isinstance(source, Mapping):
        named = next((source[split] for split in splits if split in source), None)
        if not isinstance(named, list | tuple) or len(named) != 2:
            return None
        images, labels = map(pathlib.Path, named)
        return (images, labels) if _is_idx(images) else None
    directory = pathlib.Path(source)
    for split in splits:
        for prefix in _PREFIXES.get(split, (split,)):
            files = [_one_file(directory, f"{prefix}-{part}") for part in _PARTS]
            if all(files):
                return tuple(file for file in files if file is not None)
    return None


def _one_file(directory: pathlib.Path, start: str) -> pathlib.Path | None:
    files = [file for file in sorted(directory.glob(f"{start}*idx*")) if _is_idx(file)]
    return files[0] if files else None


def _is_idx(file: pathlib.Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        start = opened.read(3)
    return start.startswith(_GZIP) or (start[:2] == b"\0\0" and start[2] in _TYPES)
