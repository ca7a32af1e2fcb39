"""Labelled images in storage, found and kept by Hugging Face `datasets`, or IDX files.

Images stay encoded until their row is read. Those of a small data set are then kept in
memory, decoded.
"""

import dataclasses
import io
import logging
import math
import os
import pathlib
import re
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from enn import _extras
from enn.datasets import base
from enn.datasets.idx import find_idx, read_idx

Source = str | os.PathLike[str] | Mapping[str, Any]
"""Where images are: the name of a data set on the Hugging Face hub; a directory with
parquet files, with an image folder (`train/cat/1.png`), with IDX files
(`train-images-idx3-ubyte.gz`) or as written by `datasets.save_to_disk`; or files by
split, `{"train": ..., "test": ...}`, of parquet or pairs of IDX files, images and
labels."""

MAX_CACHED_BYTES = 2**29

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label")


@dataclasses.dataclass(frozen=True)
class ImageKind:
    """What all images of a data set have in common.

    Attributes:
      num_classes: labels are below it.
      mode: colours as Pillow names them, "L" for grey or "RGB".
      size: height and width; empty if images differ in size, and in colours, which
        then are converted.
    """

    num_classes: int
    mode: str
    size: tuple[int, ...]

    def decode(self, cell: dict[str, Any]) -> np.ndarray:
        """Returns the image, uint8 `[height, width, channels]`.

        Args:
          cell: the encoded image, `bytes`, or else the `path` of its file.

        Raises:
          ValueError: if the image has the wrong size or colours.
          Exception: whatever Pillow raises for an image that it cannot read.
        """
        pillow = _extras.require("PIL.Image", "datasets")
        data = cell["bytes"]
        file = cell["path"] if data is None else io.BytesIO(data)
        if file is None:
            raise ValueError("the source holds no image")
        try:
            opened = pillow.open(file)
        except pillow.UnidentifiedImageError:
            raise ValueError("no image that Pillow can read") from None
        with opened as image:
            if not self.size:
                return np.asarray(image.convert(self.mode))
            found = (image.mode, (image.height, image.width))
            if found != (self.mode, self.size):
                raise ValueError(
                    f"the image must be {self.mode} of height and width {self.size}, "
                    f"got {found[0]} of {found[1]}"
                )
            return np.asarray(image).reshape(*self.size, -1)


class Pixels:
    """Decoded images, by their row numbers, kept from when they are first read.

    Threads share them. Processes that read each keep their own.

    Args:
      values: all images, or None for none at first.
      shape: `[num_rows, height, width, channels]`.
    """

    def __init__(self, values: np.ndarray | None, shape: tuple[int, ...]):
        self._shape = shape
        self._are_all_there = values is not None
        self._values = np.empty(shape, np.uint8) if values is None else values
        self._is_there = np.full(shape[0], self._are_all_there)

    def __getitem__(self, row: int) -> np.ndarray | None:
        return self._values[row] if self._is_there[row] else None

    def __setitem__(self, row: int, image: np.ndarray) -> None:
        self._values[row] = image
        self._is_there[row] = True  # Last: another thread may look.

    def __reduce__(self) -> Any:
        values = self._values if self._are_all_there else None
        return Pixels, (values, self._shape)


class SkipLog:
    """The rows skipped, collected from all reading threads and processes."""

    def __init__(self) -> None:
        file, self.path = tempfile.mkstemp(prefix="enn-skipped-")
        os.close(file)
        weakref.finalize(self, os.unlink, self.path)
        self._num_bytes = 0

    def messages(self) -> tuple[str, ...]:
        """Returns one message for each row skipped."""
        text = pathlib.Path(self.path).read_text(encoding="utf-8")
        return tuple(dict.fromkeys(text.splitlines()))

    def report(self) -> None:
        """Logs a warning where rows were skipped since the last call."""
        num_bytes = os.path.getsize(self.path)
        if num_bytes > self._num_bytes:
            self._num_bytes = num_bytes
            messages = self.messages()
            logging.getLogger(__name__).warning(
                "skipped %d unreadable rows, the last: %s", len(messages), messages[-1]
            )


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """Rows of a stored split.

    Reading row i gives `ArrayBatch(x, y, data_index)`: the decoded image, uint8, with
    the label and the index, int64 scalars.

    Attributes:
      dataset: the Hugging Face `Dataset`, with columns `image` and `label`; None where
        `pixels` hold all images.
      kind: what its images are.
      name: of the split, for messages.
      files: of the split, in order, as far as they are known.
      rows: row numbers in `dataset`.
      labels: of `rows`.
      data_index: of `rows`.
      skip_path: file to which rows that cannot be read are noted, which then are None;
        without one they raise.
      pixels: images that were read, where they fit into memory.
    """

    dataset: Any
    kind: ImageKind
    name: str
    files: tuple[str, ...]
    rows: np.ndarray
    labels: np.ndarray
    data_index: np.ndarray
    skip_path: str | None = None
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> base.ArrayBatch | None:
        """Reads a row.

        Raises:
          ValueError: naming file and row, if the image cannot be read or is of the
            wrong size, colours or label.
        """
        row, label = int(self.rows[index]), self.labels[index]
        try:
            if not 0 <= label < self.kind.num_classes:
                raise ValueError(self._wrong_label(label))
            image = self._image(row)
        except Exception as error:  # Pillow raises of many kinds.
            message = f"{self._place(row)}: {error}"
            if self.skip_path is None:
                raise ValueError(message) from error
            with open(self.skip_path, "a", encoding="utf-8") as log:
                log.write(" ".join(message.split()) + "\n")
            return None
        return base.ArrayBatch(x=image, y=label, data_index=self.data_index[index])

    def take(self, positions: np.ndarray | slice) -> "ImageTable":
        """Returns the rows at these positions, which keep their data index."""
        return dataclasses.replace(
            self,
            rows=self.rows[positions],
            labels=self.labels[positions],
            data_index=self.data_index[positions],
        )

    def noting_skipped(self, log: SkipLog | None) -> "ImageTable":
        """Returns the same rows, with None for unreadable ones, which are recorded."""
        return dataclasses.replace(self, skip_path=log.path if log else None)

    def renumbered(self) -> "ImageTable":
        """Returns the same rows with data indices 0, 1, 2, ..."""
        return dataclasses.replace(self, data_index=np.arange(len(self.rows)))

    def check_labels(self) -> None:
        """Raises ValueError naming file and row for a label out of range."""
        wrong = (self.labels < 0) | (self.labels >= self.kind.num_classes)
        if wrong.any():
            first = int(wrong.argmax())
            row = int(self.rows[first])
            reason = self._wrong_label(self.labels[first])
            raise ValueError(f"{self._place(row)}: {reason}")

    def _image(self, row: int) -> np.ndarray:
        """The decoded image of a row of `dataset`."""
        image = None if self.pixels is None else self.pixels[row]
        if image is None:
            image = self.kind.decode(self._cell(row))
            if self.pixels is not None:
                self.pixels[row] = image
        return image

    def _cell(self, row: int) -> dict[str, Any]:
        """The encoded image of a row of `dataset`, which may be null."""
        cell = self.dataset.data.column("image")[row].as_py()
        return cell or {"bytes": None, "path": None}

    def _wrong_label(self, label: np.integer) -> str:
        return f"the label must be in [0, {self.kind.num_classes}), got {label}"

    def _place(self, row: int) -> str:
        """The file and row in words."""
        if self.dataset is None:
            return f"{self.files[-1]}, row {row}"
        cell = self._cell(row)
        if cell["bytes"] is None and cell["path"] is not None:
            return f"{cell['path']}, row {row} of {self.name}"
        first = 0
        for file in self.files:
            if not _is_local_parquet(file):
                break
            parquet = _extras.require("pyarrow.parquet", "datasets")
            num_rows = parquet.read_metadata(file).num_rows
            if row < first + num_rows:
                return f"{file}, row {row - first}"
            first += num_rows
        return f"{self.name}, row {row}"


def open_images(
    source: Source,
    splits: Sequence[str],
    kind: ImageKind,
    skip_corrupt: bool = False,
) -> ImageTable:
    """Returns all rows of a split, with data indices 0, 1, 2, ...

    A data set of the hub is downloaded on first use and cached, both by Hugging Face
    `datasets` (`HF_HOME` says where, `HF_HUB_OFFLINE=1` forbids to download).

    Args:
      source: where the images are.
      splits: candidate names of the split; the first that exists is used.
      kind: what the images are.
      skip_corrupt: whether labels out of range are left to reading, which then is to
        skip them.

    Raises:
      FileNotFoundError: if there is no such data set.
      ValueError: if it cannot be read, lacks the split or a column of images or
        labels, or a label is out of range.
    """
    idx_files = find_idx(source, splits)
    if idx_files is not None:
        return _open_idx(idx_files, kind, skip_corrupt)
    dataset, split, files = _load(source, splits)
    name = f"split {split!r} of {_in_words(source)}"
    labels = _labels(dataset, _column(dataset, _LABEL_COLUMNS, name), name)
    dataset = _with_encoded_images(dataset, _column(dataset, _IMAGE_COLUMNS, name))
    rows = np.arange(len(labels))
    shape = (len(rows), *kind.size, len(kind.mode))
    fits = bool(kind.size) and math.prod(shape) <= MAX_CACHED_BYTES
    pixels = Pixels(None, shape) if fits else None
    table = ImageTable(dataset, kind, name, files, rows, labels, rows, pixels=pixels)
    if not skip_corrupt:
        table.check_labels()
    return table


def _open_idx(
    files: tuple[pathlib.Path, ...], kind: ImageKind, skip_corrupt: bool
) -> ImageTable:
    """Returns the rows of a pair of IDX files, images and labels."""
    images, labels = map(read_idx, files)
    size = tuple(kind.size) if kind.mode == "L" else (*kind.size, len(kind.mode))
    if images.shape[1:] != size or images.dtype != np.uint8:
        raise ValueError(
            f"{files[0]} must hold bytes [num_images, *{list(size)}], got "
            f"{images.dtype}{list(images.shape)}."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{files[1]} must hold integers [{len(images)}], one for each image, got "
            f"{labels.dtype}{list(labels.shape)}."
        )
    values = images.reshape(len(images), *kind.size, len(kind.mode))
    rows, names = np.arange(len(labels)), tuple(map(str, files))
    pixels = Pixels(values, values.shape)
    labels = labels.astype(np.int64)
    table = ImageTable(None, kind, names[0], names, rows, labels, rows, pixels=pixels)
    if not skip_corrupt:
        table.check_labels()
    return table


def _load(source: Source, splits: Sequence[str]) -> tuple[Any, str, tuple[str, ...]]:
    """The Hugging Face dataset of a split, the split's name and its files."""
    hf = _extras.require("datasets", "datasets")
    files: Mapping[str, Any] = {}
    try:
        if not isinstance(source, Mapping) and _is_saved_to_disk(source):
            loaded = hf.load_from_disk(os.fspath(source))
            loaded = loaded if isinstance(loaded, hf.DatasetDict) else {"train": loaded}
            loaded = {name: split.flatten_indices() for name, split in loaded.items()}
        else:
            builder = _builder(hf, source)
            files = builder.config.data_files or {}
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except Exception as error:
        raise _load_error(source, files, error) from error
    for split in splits:
        if split in loaded:
            return loaded[split], split, tuple(files.get(split, ()))
    raise ValueError(
        f"{_in_words(source)} must have a split {' or '.join(map(repr, splits))}, "
        f"got {', '.join(sorted(loaded))}."
    )


def _is_saved_to_disk(path: str | os.PathLike[str]) -> bool:
    names = ("dataset_dict.json", "state.json")
    return any(os.path.exists(os.path.join(path, name)) for name in names)


def _builder(hf: Any, source: Source) -> Any:
    if isinstance(source, Mapping):
        paths = {
            split: os.fspath(files)
            if isinstance(files, str | os.PathLike)
            else [os.fspath(file) for file in files]
            for split, files in source.items()
        }
        return hf.load_dataset_builder("parquet", data_files=paths)
    path = os.fspath(source)
    if not os.path.isdir(path) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise FileNotFoundError("no such directory")
    return hf.load_dataset_builder(path)


def _load_error(
    source: Source, files: Mapping[str, Any], error: Exception
) -> Exception:
    for file in (file for split in files.values() for file in split):
        try:
            _read_parquet(file)
        except Exception as reason:
            return ValueError(f"{file} cannot be read: {reason}")
    hint = (
        "A source is a directory with parquet files, IDX files or an image folder, "
        'files by split {"train": ..., "test": ...}, or a data set of the Hugging Face '
        "hub."
    )
    if isinstance(error, OSError):
        return FileNotFoundError(f"{_in_words(source)} is not there: {error}. {hint}")
    return ValueError(f"{_in_words(source)} cannot be read: {error}. {hint}")


def _is_local_parquet(file: str) -> bool:
    return file.endswith(".parquet") and os.path.isfile(file)


def _read_parquet(file: str) -> None:
    """Reads a local parquet file, to raise whatever error it holds."""
    if _is_local_parquet(file):
        parquet = _extras.require("pyarrow.parquet", "datasets")
        with parquet.ParquetFile(file) as opened:
            for _ in opened.iter_batches():
                pass


def _in_words(source: Source) -> str:
    if isinstance(source, Mapping):
        return f"the data set of the parquet files {dict(source)}"
    return f"the data set {os.fspath(source)}"


def _column(dataset: Any, names: Sequence[str], where: str) -> str:
    for name in names:
        if name in dataset.column_names:
            return name
    raise ValueError(
        f"{where} must have a column {' or '.join(map(repr, names))}, "
        f"got {', '.join(dataset.column_names)}."
    )


def _labels(dataset: Any, column: str, where: str) -> np.ndarray:
    labels = np.asarray(dataset.with_format("numpy", columns=[column])[:][column])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{where} must have integer labels, got {labels.dtype}.")
    return labels.astype(np.int64)


def _with_encoded_images(dataset: Any, column: str) -> Any:
    hf = _extras.require("datasets", "datasets")
    dataset = dataset.select_columns([column])
    if column != "image":
        dataset = dataset.rename_column(column, "image")
    return dataset.cast_column("image", hf.Image(decode=False))
