import io
import shutil

import numpy as np
import pytest
from PIL import Image

from enn.datasets import sources
from tests.support import stored

KIND = sources.ImageKind(num_classes=3, mode="RGB", size=(4, 5))
ANY_SIZE = sources.ImageKind(num_classes=3, mode="RGB", size=())
IMAGES = stored.random_images(7, (4, 5, 3))
LABELS = [0, 1, 2, 0, 1, 2, 0]


GOOD = stored.png(IMAGES[5])


def _encoded():
    return [stored.png(image) for image in IMAGES]


@pytest.fixture(scope="module")
def parquet(store):
    """A directory with seven training examples in two files, and one to test."""
    directory = store / "parquet"
    encoded = _encoded()
    for name, rows in [
        ("train-00000-of-00002", slice(0, 4)),
        ("train-00001-of-00002", slice(4, 7)),
        ("test-00000-of-00001", slice(0, 1)),
    ]:
        path = directory / "data" / f"{name}.parquet"
        stored.write_parquet(path, encoded[rows], LABELS[rows])
    return directory


def _check(table, images=IMAGES, labels=LABELS):
    assert len(table) == len(images)
    np.testing.assert_array_equal(table.labels, labels)
    for i, image in enumerate(images):
        example = table[i]
        np.testing.assert_array_equal(example.x, image)
        assert (int(example.y), int(example.data_index)) == (labels[i], i)
        assert example.y.dtype == example.data_index.dtype == np.int64


def test_a_directory_of_parquet_files_is_read(parquet):
    _check(sources.open_images(parquet, ["train"], KIND))
    _check(sources.open_images(str(parquet), ["test"], KIND), IMAGES[:1], LABELS[:1])


def test_parquet_files_by_split_are_read(parquet):
    files = sorted((parquet / "data").glob("train-*"))
    source = {"train": files, "test": str(files[0])}
    _check(sources.open_images(source, ["train"], KIND))
    _check(sources.open_images(source, ["test"], KIND), IMAGES[:4], LABELS[:4])


def test_an_image_folder_is_read_class_by_class(store):
    stored.write_folder(store / "folder" / "train", IMAGES, LABELS)
    stored.write_folder(store / "folder" / "val", IMAGES[:3], LABELS[:3])
    by_class = np.argsort(LABELS, kind="stable")
    table = sources.open_images(store / "folder", ["train"], KIND)
    _check(table, IMAGES[by_class], sorted(LABELS))
    validation = sources.open_images(store / "folder", ["validation", "test"], KIND)
    _check(validation, IMAGES[:3], LABELS[:3])


def test_a_data_set_saved_to_disk_is_read(store):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "fine_label": int_feature()})
    columns = {"img": list(IMAGES), "fine_label": LABELS}
    saved = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": saved.select([2, 0])}).save_to_disk(store / "saved")
    table = sources.open_images(store / "saved", ["train"], KIND)
    _check(table, IMAGES[[2, 0]], [2, 0])


def int_feature():
    import datasets

    return datasets.Value("int64")


def test_rows_taken_keep_their_data_index(parquet):
    table = sources.open_images(parquet, ["train"], KIND).take(slice(1, None, 2))
    assert [int(table[i].data_index) for i in range(len(table))] == [1, 3, 5]
    np.testing.assert_array_equal(table.labels, [1, 0, 2])
    np.testing.assert_array_equal(table.take(np.array([2]))[0].x, IMAGES[5])
    np.testing.assert_array_equal(table.renumbered().data_index, [0, 1, 2])


def test_images_of_any_size_and_colour_become_rgb(store):
    grey = Image.fromarray(IMAGES[0][:, :3, 0])
    cmyk = Image.fromarray(IMAGES[1]).convert("CMYK")
    buffer = io.BytesIO()
    cmyk.save(buffer, "TIFF")
    encoded = [stored.png(np.asarray(grey)), buffer.getvalue(), stored.png(IMAGES[2])]
    path = stored.write_parquet(store / "mixed.parquet", encoded, [0, 1, 2])
    table = sources.open_images({"train": path}, ["train"], ANY_SIZE)
    np.testing.assert_array_equal(table[0].x, np.repeat(IMAGES[0][:, :3, :1], 3, 2))
    np.testing.assert_array_equal(table[1].x, np.asarray(cmyk.convert("RGB")))
    np.testing.assert_array_equal(table[2].x, IMAGES[2])


def _open_with_bad_row(store, name, data=GOOD, label=1):
    """Two files; row 1 of the second is `data` with `label`."""
    encoded, labels = _encoded(), list(LABELS)
    encoded[5], labels[5] = data, label
    files = [
        stored.write_parquet(store / name / f"{part}.parquet", encoded[s], labels[s])
        for part, s in [("a", slice(0, 4)), ("b", slice(4, 7))]
    ]
    return {"train": files}, f"{name}/b.parquet, row 1: "


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("junk", b"no image", "no image that Pillow can read"),
        ("missing", None, "the source holds no image"),
        ("truncated", stored.png(stored.random_images(1, (4, 5, 3))[0])[:-60], ""),
        ("grey", stored.png(IMAGES[0][:, :, 0]), "must be RGB of .* got L of"),
        ("large", stored.png(np.zeros([5, 5, 3], np.uint8)), r"got RGB of \(5, 5\)"),
    ],
    ids=["junk", "missing", "truncated", "grey", "large"],
)
def test_a_bad_image_is_named_by_file_and_row_and_may_be_skipped(
    store, name, data, message
):
    source, place = _open_with_bad_row(store, name, data)
    table = sources.open_images(source, ["train"], KIND)
    assert table[4] is not None
    with pytest.raises(ValueError, match=place + ".*" + message):
        table[5]
    log = sources.SkipLog()
    table = table.noting_skipped(log)
    assert [table[i] is None for i in range(7)] == [False] * 5 + [True, False]
    assert table[5] is None
    (skipped,) = log.messages()
    assert place in skipped


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_named_by_file_and_row_and_may_be_skipped(store, label):
    source, place = _open_with_bad_row(store, f"label{label}", label=label)
    message = place + rf"the label must be in \[0, 3\), got {label}"
    with pytest.raises(ValueError, match=message):
        sources.open_images(source, ["train"], KIND)
    log = sources.SkipLog()
    table = sources.open_images(source, ["train"], KIND, skip_corrupt=True)
    assert table.noting_skipped(log)[5] is None
    assert place in log.messages()[0]


def test_a_bad_file_of_an_image_folder_is_named(store):
    directory = store / "bad_folder"
    stored.write_folder(directory / "train", IMAGES, LABELS)
    (directory / "train" / "class001" / "004.png").write_bytes(b"no image")
    table = sources.open_images(directory, ["train"], KIND)
    with pytest.raises(ValueError, match=r"train/class001/004.png, row 4 of split"):
        table[4]


def test_skipped_rows_are_logged_once(store, caplog):
    source, place = _open_with_bad_row(store, "logged", b"no image")
    log = sources.SkipLog()
    table = sources.open_images(source, ["train"], KIND).noting_skipped(log)
    log.report()
    assert not caplog.records
    assert table[5] is None
    log.report()
    log.report()
    (record,) = caplog.records
    assert "skipped 1 unreadable rows" in record.getMessage()
    assert place in record.getMessage()


@pytest.mark.parametrize("source", ["nowhere/at/all", "/nowhere", "no_such/name"])
def test_a_missing_data_set_raises(store, source):
    with pytest.raises(FileNotFoundError, match=f"data set {source} is not there: "):
        sources.open_images(source, ["train"], KIND)


def test_a_missing_parquet_file_raises(store):
    with pytest.raises(FileNotFoundError, match=r"no_such.parquet"):
        sources.open_images({"train": store / "no_such.parquet"}, ["train"], KIND)


def test_a_directory_without_images_raises(store):
    (store / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="doesn't contain any data files"):
        sources.open_images(store / "empty", ["train"], KIND)


@pytest.mark.parametrize("part", [slice(-20, None), slice(4, 60)])
def test_a_corrupt_parquet_file_is_named(store, parquet, part):
    directory = store / f"corrupt{part.start}"
    shutil.copytree(parquet, directory)
    bad = directory / "data" / "train-00001-of-00002.parquet"
    data = bytearray(bad.read_bytes())
    data[part] = b"\xff" * len(data[part])
    bad.write_bytes(data)
    with pytest.raises(ValueError, match=r"00001-of-00002.parquet cannot be read"):
        sources.open_images(directory, ["train"], KIND)


def test_a_missing_split_raises(parquet):
    message = "must have a split 'validation' or 'val', got test, train"
    with pytest.raises(ValueError, match=message):
        sources.open_images(parquet, ["validation", "val"], KIND)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("image", "digit"), "must have a column 'label' or 'fine_label', got image"),
        (("picture", "label"), "must have a column 'image' or 'img', got picture"),
    ],
)
def test_a_missing_column_raises(store, columns, message):
    path = store / f"{'_'.join(columns)}.parquet"
    stored.write_parquet(path, _encoded(), LABELS, columns)
    with pytest.raises(ValueError, match=message):
        sources.open_images({"train": path}, ["train"], KIND)


def test_labels_must_be_integers(store):
    path = store / "names.parquet"
    stored.write_parquet(path, _encoded(), ["cat"] * 7)
    with pytest.raises(ValueError, match="must have integer labels"):
        sources.open_images({"train": path}, ["train"], KIND)
