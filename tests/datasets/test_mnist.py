import grain
import jax
import numpy as np
import pytest

from enn import datasets
from enn.datasets import mnist
from tests.support import stored

IMAGES = stored.random_images(24, (28, 28))
LABELS = [i % 10 for i in range(24)]


@pytest.fixture(scope="module")
def source(store):
    directory = store / "mnist"
    stored.write_folder(directory / "train", *_by_label(IMAGES, LABELS))
    stored.write_folder(directory / "test", *_by_label(IMAGES[:10], LABELS[:10]))
    return directory


def _by_label(images, labels):
    """In the order in which an image folder is read."""
    order = np.argsort(labels, kind="stable")
    return images[order], [labels[i] for i in order]


TRAIN_IMAGES, TRAIN_LABELS = _by_label(IMAGES, LABELS)


def _mnist(source, **kwargs):
    defaults = {"train_batch": 8, "eval_batch": 5, "train_data_parallelism": False}
    return datasets.Mnist(source=source, **(defaults | kwargs))


PARALLEL = {"train_data_parallelism": True}


def _epoch(stream, num_batches=3):
    batches = [next(stream) for _ in range(num_batches)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def test_fields_come_in_the_order_of_the_original_with_its_defaults():
    fields = stored.arguments(datasets.Mnist)
    assert list(fields)[:7] == [
        "train_ds_transformer",
        "eval_ds_transformers",
        "train_batch",
        "eval_batch",
        "normalization_mode",
        "train_data_parallelism",
        "eval_data_parallelism",
    ]
    assert list(fields.values())[2:7] == [128, 100, "standard", True, False]
    assert list(fields["eval_ds_transformers"]) == ["eval"]
    dataset = datasets.Mnist(reversed, {"some": list})
    assert dataset.train_ds_transformer is reversed
    assert dataset.eval_ds_transformers == {"some": list}


def test_what_is_known_without_any_data():
    dataset = datasets.Mnist()
    assert dataset.num_classes == 10
    assert dataset.eval_input_shape == (28, 28, 1)
    assert [split.num_examples for split in datasets.MnistSplit] == [50000, 10000]


def test_training_batches_may_have_an_axis_of_devices(source):
    batch = next(_mnist(source, train_batch=6, **PARALLEL).train_dataset())
    assert {name: leaf.shape for name, leaf in batch.items() if name in "xy"} == {
        "x": (1, 6, 28, 28, 1),
        "y": (1, 6),
    }
    assert batch.data_index.shape == (1, 6)
    assert (batch.x.dtype, batch.y.dtype, batch.data_index.dtype) == (
        np.float32,
        np.int64,
        np.int64,
    )
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))
    assert batch.weights is None
    assert batch.extra == {}


def test_an_epoch_shows_every_example_once_standardised(source):
    stream = _mnist(source).train_dataset()
    epoch = _epoch(stream)
    order = epoch.data_index
    assert sorted(order) == list(range(24))
    assert not np.array_equal(_epoch(stream).data_index, order)
    np.testing.assert_array_equal(epoch.y, np.array(TRAIN_LABELS)[order])
    pixels = TRAIN_IMAGES[order].astype(np.float64)
    mean, std = pixels.mean((1, 2), keepdims=True), pixels.std((1, 2), keepdims=True)
    np.testing.assert_allclose(epoch.x[..., 0], (pixels - mean) / std, atol=1e-5)


@pytest.mark.slow
def test_the_seed_fixes_the_batches(source):
    first, again, other = (
        _epoch(_mnist(source, seed=seed).train_dataset()) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.data_index, again.data_index)
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.data_index, other.data_index)


def test_evaluation_is_one_pass_in_order_and_starts_afresh(source):
    dataset = _mnist(source, normalization_mode="identity")
    for _ in range(2):
        batches = list(dataset.eval_datasets()["eval"])
        assert [batch.x.shape for batch in batches] == [(5, 28, 28, 1)] * 2
        np.testing.assert_array_equal(batches[1].data_index, np.arange(5, 10))
        np.testing.assert_array_equal(batches[1].y, LABELS[5:10])
        np.testing.assert_array_equal(
            batches[1].x[..., 0], IMAGES[5:10].astype(np.float32) * np.float32(1 / 255)
        )


@pytest.mark.parametrize(("drop", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_a_short_last_batch_is_dropped_unless_asked_for(source, drop, sizes):
    dataset = _mnist(source, eval_batch=4, drop_remainder=drop)
    batches = list(dataset.eval_datasets()["eval"])
    assert [len(batch.y) for batch in batches] == sizes


def test_evaluation_with_data_parallelism(source):
    dataset = _mnist(source, eval_data_parallelism=True)
    assert next(dataset.eval_datasets()["eval"]).x.shape == (1, 5, 28, 28, 1)


@pytest.mark.slow
def test_each_process_reads_its_own_shard(source, monkeypatch):
    seen = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        dataset = _mnist(source, train_batch=4)
        epoch = _epoch(dataset.train_dataset())
        (batch,) = dataset.eval_datasets()["eval"]
        np.testing.assert_array_equal(batch.data_index, np.arange(process, 10, 2))
        seen.append(epoch.data_index)
    assert sorted(seen[0]) == list(range(0, 24, 2))
    assert sorted(seen[1]) == list(range(1, 24, 2))
    # Shards are shuffled each in its own way.
    assert not np.array_equal(seen[0] + 1, seen[1])


def test_data_indices_number_training_examples_after_the_transformer(source):
    outside = datasets.get_dataset_transform_from_type(
        datasets.OodVariant.OUT_DISTRIBUTION, [3, 9]
    )
    dataset = _mnist(source, train_ds_transformer=outside, train_batch=5)
    batch = next(dataset.train_dataset())
    assert set(batch.y) == {3, 9}
    assert sorted(batch.data_index) == list(range(5))


def test_transformers_may_be_written_with_grain(source):
    def first_labels(dataset: grain.MapDataset) -> grain.MapDataset:
        return dataset.filter(lambda example: example.y < 4).map(
            lambda example: example.replace(x=255 - example.x)
        )

    dataset = _mnist(
        source, train_ds_transformer=first_labels, normalization_mode="identity"
    )
    epoch = _epoch(dataset.train_dataset(), 2)
    assert len(epoch.y) > (np.array(LABELS) < 4).sum()
    assert epoch.y.max() < 4
    np.testing.assert_allclose(
        epoch.x[..., 0], 1 - TRAIN_IMAGES[epoch.data_index] / 255, atol=1e-6
    )


def test_evaluation_transformers_see_normalised_images(source):
    def largest(dataset):
        return dataset.map(lambda example: example.replace(x=example.x.max()))

    dataset = _mnist(
        source,
        eval_ds_transformers={
            "largest": largest,
            "dyadic": datasets.make_dyadic_transform(5, flip=False),
        },
        normalization_mode="identity",
    )
    streams = dataset.eval_datasets()
    assert list(streams) == ["largest", "dyadic"]
    np.testing.assert_allclose(
        next(streams["largest"]).x, IMAGES[:5].max((1, 2)) / 255, rtol=1e-6
    )
    groups = list(streams["dyadic"])
    assert [set(group.y) for group in groups] == [{label} for label in range(10)]


@pytest.mark.slow
def test_workers_read_the_same_batches_and_tell_what_they_skip(store):
    encoded = [stored.png(image) for image in IMAGES[:12]]
    encoded[5] = b"no image"
    path = stored.write_parquet(store / "workers.parquet", encoded, LABELS[:12])
    streams = [
        _mnist(
            {"train": path}, train_batch=3, skip_corrupt=True, num_workers=num_workers
        ).train_dataset()
        for num_workers in (0, 2)
    ]
    for _ in range(8):
        here, there = (next(stream) for stream in streams)
        np.testing.assert_array_equal(here.data_index, there.data_index)
        np.testing.assert_array_equal(here.x, there.x)
        assert 5 not in here.data_index
    for stream in streams:
        assert stream.state() == streams[0].state()
        (message,) = stream.skipped
        assert message == f"{path}, row 5: no image that Pillow can read"
        stream.close()


def test_what_is_skipped_is_logged_also_where_no_batch_is_left(store, caplog):
    encoded = [*(stored.png(image) for image in IMAGES[:3]), b"no image"]
    path = stored.write_parquet(store / "short.parquet", encoded, LABELS[:4])
    dataset = _mnist({"test": path}, eval_batch=4, skip_corrupt=True)
    assert list(dataset.eval_datasets()["eval"]) == []
    (record,) = caplog.records
    assert f"skipped 1 unreadable rows, the last: {path}, row 3" in record.getMessage()


def test_a_corrupt_image_is_named_when_it_is_read(store):
    encoded = [stored.png(image) for image in IMAGES[:4]]
    encoded[2] = encoded[2][:200]
    path = stored.write_parquet(store / "corrupt.parquet", encoded, LABELS[:4])
    dataset = _mnist({"train": path, "test": path}, train_batch=4, eval_batch=2)
    with pytest.raises(ValueError, match=f"{path}, row 2: "):
        next(dataset.train_dataset())
    stream = dataset.eval_datasets()["eval"]
    assert len(next(stream).y) == 2
    with pytest.raises(ValueError, match=f"{path}, row 2: "):
        next(stream)


def test_without_the_hub_the_error_says_what_to_do(store):
    with pytest.raises(FileNotFoundError, match=r"mnist is not there: .*parquet"):
        datasets.Mnist().train_dataset()


def test_an_unknown_normalisation_raises():
    batch = datasets.ArrayBatch(x=IMAGES[0][..., None], y=0)
    with pytest.raises(ValueError, match="'standard', 'identity'; got 'custom'"):
        mnist.preprocess_batch(batch, "custom")
