"""MNIST's own files."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from enn import datasets
from enn.datasets import sources
from enn.datasets.idx import read_idx
from tests.support import stored

IMAGES = stored.random_images(12, (28, 28))
LABELS = np.arange(12, dtype=np.uint8) % 10
KIND = sources.ImageKind(num_classes=10, mode="L", size=(28, 28))


def _idx(array, kind=8, dtype=">u1"):
    """An array as the format's description says."""
    header = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return header + array.astype(dtype).tobytes()


def _write(directory, split, num, compress):
    directory.mkdir(parents=True, exist_ok=True)
    for part, array in (("images-idx3", IMAGES[:num]), ("labels-idx1", LABELS[:num])):
        content = _idx(array)
        name = f"{split}-{part}-ubyte" + ".gz" * compress
        (directory / name).write_bytes(gzip.compress(content) if compress else content)
    return directory


@pytest.fixture(params=[True, False], ids=["gzip", "plain"])
def source(request, tmp_path):
    _write(tmp_path, "train", 12, request.param)
    return _write(tmp_path, "t10k", 5, request.param)


@pytest.mark.parametrize(
    ("kind", "dtype", "wanted"),
    [(9, ">i1", np.int8), (11, ">i2", np.int16), (14, ">f8", np.float64)],
)
def test_other_types_of_numbers(kind, dtype, wanted, tmp_path):
    array = np.array([[-1, 100], [3, 4], [5, 6]])
    (tmp_path / "a").write_bytes(_idx(array, kind, dtype))
    read = read_idx(tmp_path / "a")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == wanted


def test_data_sets_read_them(source):
    for cls in (datasets.Mnist, datasets.FashionMnist):
        dataset = cls(
            train_batch=6,
            eval_batch=5,
            normalization_mode="identity",
            train_data_parallelism=False,
            source=source,
        )
        stream = dataset.train_dataset()
        batches = [next(stream) for _ in range(2)]
        index = np.concatenate([batch.data_index for batch in batches])
        assert sorted(index) == list(range(12))
        x = np.concatenate([batch.x for batch in batches])
        np.testing.assert_allclose(x[..., 0], IMAGES[index] / 255, rtol=1e-6)
        y = np.concatenate([batch.y for batch in batches])
        np.testing.assert_array_equal(y, LABELS[index])
        (test,) = dataset.eval_datasets()["eval"]
        np.testing.assert_allclose(test.x[..., 0], IMAGES[:5] / 255, rtol=1e-6)


def test_files_by_split(source):
    (images,) = source.glob("t10k-images*")
    (labels,) = source.glob("t10k-labels*")
    by_split = {"train": (images, str(labels)), "test": "elsewhere.parquet"}
    table = sources.open_images(by_split, ["train"], KIND)
    assert len(table) == 5
    example = table.take(np.array([3, 1]))[0]
    np.testing.assert_array_equal(example.x[..., 0], IMAGES[3])
    assert (int(example.y), int(example.data_index)) == (3, 3)


def test_fashion_mnist_is_found_on_the_hub():
    assert datasets.FashionMnist().hub_name == "zalando-datasets/fashion_mnist"
    assert datasets.FashionMnist().eval_input_shape == (28, 28, 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:6],
        lambda content: b"\0\0\7" + content[3:],
        lambda content: gzip.compress(content)[:-9],
    ],
)
def test_damaged_files_are_named(damage, tmp_path):
    (tmp_path / "broken").write_bytes(damage(_idx(IMAGES)))
    with pytest.raises(ValueError, match=r"broken is not a whole IDX file: "):
        read_idx(tmp_path / "broken")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:, :4], LABELS, r"images.*must hold bytes .* got uint8\[12, 4, 28\]"),
        (IMAGES, LABELS[:3], r"labels.*one for each image, got uint8\[3\]"),
        (
            IMAGES,
            LABELS + 7,
            r"labels-idx1-ubyte, row 3: the label must be in \[0, 10\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(images, labels, message, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(labels))
    with pytest.raises(ValueError, match=message):
        sources.open_images(tmp_path, ["train"], KIND)


def test_wrong_labels_may_be_skipped(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(LABELS + 2))
    log = sources.SkipLog()
    table = sources.open_images(tmp_path, ["train"], KIND, skip_corrupt=True)
    assert table.noting_skipped(log)[8] is None
    assert "labels-idx1-ubyte, row 8: the label" in log.messages()[0]


def test_decoded_images_are_kept(store, monkeypatch):
    encoded = [stored.png(image) for image in IMAGES]
    path = stored.write_parquet(store / "kept.parquet", encoded, LABELS.tolist())
    table = sources.open_images({"train": path}, ["train"], KIND)
    decoded = []
    decode = sources.ImageKind.decode
    monkeypatch.setattr(
        sources.ImageKind,
        "decode",
        lambda kind, cell: decoded.append(1) or decode(kind, cell),
    )
    for part in (table, table.take(slice(3, 9)), table):
        for i, row in enumerate(part.rows):
            np.testing.assert_array_equal(part[i].x[..., 0], IMAGES[row])
    assert len(decoded) == 12
    # Processes that read start without images, but with those of IDX files.
    copied = pickle.loads(pickle.dumps(table.pixels))
    assert copied[0] is None
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", 12 * 28 * 28 - 1)
    assert sources.open_images({"train": path}, ["train"], KIND).pixels is None
