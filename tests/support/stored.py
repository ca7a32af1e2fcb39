"""Small image data sets, written in the formats that are read."""

import inspect
import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

# Read when Hugging Face's packages are imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory for image data sets; nothing is cached outside of it."""
    import datasets

    directory = tmp_path_factory.mktemp("store")
    datasets.config.HF_DATASETS_CACHE = str(directory / "cache")
    datasets.disable_progress_bars()
    return directory


def random_images(num: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Bytes `[num, *shape]`, grey for shapes without channels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, *shape), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: pathlib.Path,
    encoded: list[bytes | None],
    labels: list[int],
    columns: tuple[str, str] = ("image", "label"),
) -> pathlib.Path:
    """Encoded images, or none, as the Hugging Face hub stores them, in one file."""
    import pyarrow as pa
    from pyarrow import parquet

    image, label = columns
    cells = [data and {"bytes": data, "path": None} for data in encoded]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({image: cells, label: labels}), path)
    return path


def write_folder(path: pathlib.Path, images: np.ndarray, labels: list[int]) -> None:
    """PNG files `path/CLASS/NUMBER.png`."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        directory = path / f"class{label:03}"
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(directory / f"{i:03}.png")


def arguments(data_set: type) -> dict[str, object]:
    """The arguments of a data set in order, with what they are by default."""
    return {
        name: getattr(data_set(), name)
        for name in inspect.signature(data_set).parameters
    }
