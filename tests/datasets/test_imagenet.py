import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import datasets
from enn.datasets import image_ops, imagenet
from enn.datasets.imagenet import Split
from tests.support import stored

TRAIN_LABELS = [0, 0, 0, 1, 1, 1, 1, 2]
TRAIN_IMAGES = [
    stored.random_images(1, (16 + i, 20, 3), seed=i)[0]
    for i in range(len(TRAIN_LABELS))
]
TEST_IMAGES = stored.random_images(6, (18, 15, 3), seed=100)
TEST_LABELS = [0, 0, 1, 1, 2, 2]
SIZE = (8, 8)


@pytest.fixture(scope="module")
def source(store):
    splits = {
        "train": (TRAIN_IMAGES, TRAIN_LABELS),
        "validation": (TEST_IMAGES, TEST_LABELS),
    }
    return {
        split: stored.write_parquet(
            store / "imagenet" / split, [stored.png(image) for image in images], labels
        )
        for split, (images, labels) in splits.items()
    }


def _load(source, split=Split.TRAIN_AND_VALID, is_training=True, batch=4, **kwargs):
    defaults = {"data_parallelism": False, "image_size": SIZE, "seed": 0}
    return imagenet.load(
        split,
        is_training=is_training,
        total_batch_size=batch,
        source=source,
        **(defaults | kwargs),
    )


def _evaluate(source, **kwargs):
    return list(_load(source, Split.TEST, False, **({"batch": 3} | kwargs)))


def _processes(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def _normalised(image):
    return (image - np.array(imagenet.MEAN_RGB)) / np.array(imagenet.STDDEV_RGB)


def test_fields_come_in_the_order_of_the_original_with_its_defaults():
    dataset = datasets.Imagenet()
    fields = stored.arguments(datasets.Imagenet)
    assert list(fields.items())[2:10] == [
        ("train_batch", 128),
        ("eval_batch", 100),
        ("dataset_seed", 0),
        ("enable_double_transpose", True),
        ("fake_data", False),
        ("num_train", 1281167),
        ("train_data_parallelism", True),
        ("eval_data_parallelism", False),
    ]
    assert dataset.num_classes == 1000
    assert dataset.eval_input_shape == (224, 224, 3)


def test_constants():
    np.testing.assert_allclose(imagenet.MEAN_RGB, 255 * np.array([0.485, 0.456, 0.406]))
    np.testing.assert_allclose(
        imagenet.STDDEV_RGB, 255 * np.array([0.229, 0.224, 0.225])
    )
    assert datasets.IMAGENET_MAX_NUM_TRAIN == 1281167
    assert {split.name: split.num_examples for split in datasets.ImagenetSplit} == {
        "TRAIN": 1271167,
        "TRAIN_AND_VALID": 1281167,
        "VALID": 10000,
        "TEST": 50000,
    }


def test_evaluation_crops_the_centre_and_resizes(source):
    batches = _evaluate(source)
    assert [batch.x.shape for batch in batches] == [(3, *SIZE, 3)] * 2
    assert (batches[0].x.dtype, batches[0].y.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(batches[1].y, [1, 2, 2])
    np.testing.assert_array_equal(batches[1].data_index, [3, 4, 5])
    # 18 x 15 at a margin of 32: a scale of 15/40, of which 8 x 8 is 3 x 3.
    crop = TEST_IMAGES[4][8:11, 6:9]
    expected = jax.image.resize(
        crop.astype(np.float32), (*SIZE, 3), "cubic", antialias=False
    )
    np.testing.assert_allclose(
        batches[1].x[1], _normalised(np.array(expected)), atol=1e-4
    )


@pytest.mark.slow
def test_training_images_are_parts_resized_mirrored_and_normalised(store):
    # Resized ramps are ramps, whose slopes tell the size of the part.
    ramps = np.full([40, 60, 3], 100, np.uint8)
    ramps[..., 0] = 4 * np.arange(40)[:, None]
    ramps[..., 1] = 4 * np.arange(60)
    stored.write_folder(store / "ramps" / "train", [ramps, ramps], [0, 1])
    stream = _load(store / "ramps", batch=50)
    batch = next(stream)
    np.testing.assert_allclose(batch.x[..., 2], (100 - 103.53) / 57.375, rtol=1e-4)
    down = np.diff(batch.x[:, 2:-2, 4, 0] * imagenet.STDDEV_RGB[0], axis=1)
    right = np.diff(batch.x[:, 4, 2:-2, 1] * imagenet.STDDEV_RGB[1], axis=1)
    for slopes, side in [(down, 40), (right, 60)]:
        np.testing.assert_allclose(slopes, slopes[:, :1].repeat(3, axis=1), atol=1e-3)
        pixels = np.abs(slopes[:, 0]) * SIZE[0] / 4
        np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
        assert len(set(pixels.round())) > 10
        assert pixels.max() < side + 0.1
    area = (down[:, 0] * np.abs(right[:, 0]) * 4).round() / (40 * 60)
    assert area.min() >= 0.1
    # Half of 50 are mirrored, to four standard deviations.
    assert 11 < (right[:, 0] < 0).sum() < 39


def test_every_epoch_draws_other_parts(source):
    stream = _load(source, batch=8)
    epochs = [next(stream) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.data_index) == list(range(8))
        np.testing.assert_array_equal(epoch.y, np.array(TRAIN_LABELS)[epoch.data_index])
    first, second = (epoch.x[np.argsort(epoch.data_index)] for epoch in epochs)
    assert (np.abs(first - second).max((1, 2, 3)) > 0.1).all()


def test_a_training_image_without_a_part_to_draw_is_cropped_at_the_centre(store):
    image = stored.random_images(1, (2, 90, 3))[0]
    stored.write_folder(store / "narrow" / "train", [image, image], [0, 1])
    batches = _load(store / "narrow", batch=8)
    box = image_ops.central_box((2, 90), SIZE)
    expected = _normalised(image_ops.resize_bicubic(image_ops.crop(image, box), *SIZE))
    for x in next(batches).x:
        mirrored = x[:, ::-1]
        error = min(np.abs(x - expected).max(), np.abs(mirrored - expected).max())
        assert error < 1e-4


def test_the_seed_fixes_everything_and_none_nothing(source):
    first, again, other = (next(_load(source, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)
    free = [next(_load(source, seed=None)) for _ in range(2)]
    assert not np.array_equal(free[0].x, free[1].x)


def test_a_restored_position_gives_the_same_images(source):
    stream = _load(source)
    next(stream)
    state = stream.state()
    expected = [next(stream) for _ in range(3)]
    other = _load(source)
    other.restore(state)
    for batch in expected:
        np.testing.assert_array_equal(batch.x, next(other).x)


@pytest.mark.parametrize(
    ("split", "is_training", "index", "expected"),
    [
        (Split.TRAIN_AND_VALID, True, 0, [0, 1, 2]),
        (Split.TRAIN_AND_VALID, True, 2, [6, 7]),
        (Split.TEST, False, 1, [2, 3]),
    ],
)
def test_processes_read_consecutive_parts_with_indices_of_the_whole_split(
    source, monkeypatch, split, is_training, index, expected
):
    # In the original indices began at 0 in every process.
    _processes(monkeypatch, index, 3)
    batch = next(_load(source, split, is_training, batch=len(expected)))
    assert sorted(batch.data_index) == expected


def test_parts_of_the_whole_test_set(monkeypatch):
    _processes(monkeypatch, 1, 3)
    batches = list(
        _load(None, Split.TEST, False, 1000, fake_data=True, image_size=(1, 1))
    )
    # 16 667 examples from 16 667 on, in batches of 1000.
    assert len(batches) == 16
    assert batches[0].data_index[0] == 16667


def test_num_examples_are_the_first_ones(source):
    batch = next(_load(source, batch=3, num_examples=3))
    assert sorted(batch.data_index) == [0, 1, 2]


def test_the_split_of_training_examples(store):
    stored.write_parquet(
        store / "long.parquet",
        [stored.png(TEST_IMAGES[0])] * 10003,
        [0] * 10000 + [1, 2, 3],
    )
    source = {"train": store / "long.parquet"}
    batch = next(_load(source, Split.TRAIN, batch=3))
    assert sorted(batch.y) == [1, 2, 3]
    assert sorted(batch.data_index) == [0, 1, 2]
    assert _load(source, Split.VALID).state()["num_data"] == 10000
    assert _load(source).state()["num_data"] == 10003


def test_a_split_without_examples_raises(source):
    with pytest.raises(ValueError, match=r"TRAIN has no examples: .* there are 8"):
        _load(source, Split.TRAIN)


def test_evaluation_drops_nothing_silently(source):
    with pytest.raises(ValueError, match=r"6 .* not a multiple of a batch of 4"):
        _evaluate(source, batch=4)
    batches = _evaluate(source, batch=4, drop_remainder=False)
    assert [len(batch.y) for batch in batches] == [4, 2]


def test_what_is_left_of_a_part_is_what_must_divide(source, monkeypatch):
    _processes(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match=r"3 examples to evaluate .* batch of 2"):
        _evaluate(source, batch=2)
    outside = datasets.get_dataset_transform_from_type(
        datasets.OodVariant.OUT_DISTRIBUTION, [0]
    )
    (batch,) = _evaluate(source, batch=2, ds_transform=outside)
    np.testing.assert_array_equal(batch.y, [0, 0])


def test_transformers_see_preprocessed_images(source):
    dyadic = datasets.make_dyadic_transform(2, crop_offset=0, flip=False)
    batches = _evaluate(source, ds_transform=dyadic, batch=4)
    np.testing.assert_array_equal(batches[0].data_index, [0, 0, 1, 1])
    np.testing.assert_array_equal(batches[0].x[::2], _evaluate(source)[0].x[:2])
    stream = _load(source, ds_transform=dyadic, batch=16)
    epochs = [next(stream) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.data_index) == sorted([*range(8)] * 2)
    first, second = (epoch.x[np.argsort(epoch.data_index)] for epoch in epochs)
    assert not np.array_equal(first, second)


def test_transposed_batches_end_with_the_batch_axis(source):
    expected = _evaluate(source)[0].x
    (batch, _) = _evaluate(source, transpose=True, dtype=jnp.bfloat16)
    assert batch.x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        batch.x, np.moveaxis(expected, 0, -1).astype(jnp.bfloat16)
    )
    (batch, _) = _evaluate(source, transpose=True, data_parallelism=True)
    np.testing.assert_array_equal(batch.x, np.moveaxis(expected, 0, -1)[None])


def test_fake_data_is_one_pass_of_zeros(monkeypatch):
    # The original gave as many batches as there are examples, without indices.
    batches = list(
        _load(
            None,
            batch=4,
            num_examples=10,
            fake_data=True,
            data_parallelism=True,
            transpose=True,
            dtype=jnp.bfloat16,
        )
    )
    assert len(batches) == 2
    for batch in batches:
        assert batch.x.shape == (1, *SIZE, 3, 4)
        assert batch.x.dtype == jnp.bfloat16
        assert batch.y.shape == (1, 4)
        assert batch.y.dtype == np.int32
        assert not batch.x.any()
        assert not batch.y.any()
    np.testing.assert_array_equal(batches[1].data_index, [[4, 5, 6, 7]])


def test_the_data_set_hands_its_fields_on(source):
    dataset = datasets.Imagenet(
        train_batch=4, eval_batch=3, num_train=4, source=source, dataset_seed=3
    )
    train = dataset.train_dataset()
    assert train.state() == {"seed": 3, "num_data": 4, "position": 0}
    assert next(train).x.shape == (1, 4, 224, 224, 3)
    evaluation = dataset.eval_datasets()["eval"]
    assert next(evaluation).x.shape == (3, 224, 224, 3)
    fake = datasets.Imagenet(fake_data=True, eval_data_parallelism=True)
    assert next(fake.train_dataset()).x.shape == (1, 128, 224, 224, 3)
    assert next(fake.eval_datasets()["eval"]).x.shape == (1, 100, 224, 224, 3)


def test_it_is_never_downloaded_unasked(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("looked for something to download")

    import datasets as hf

    monkeypatch.setattr(hf, "load_dataset_builder", refuse)
    with pytest.raises(FileNotFoundError, match=r"unasked. Pass source="):
        datasets.Imagenet().train_dataset()


def test_unreadable_images_of_folders_are_named_or_skipped(store):
    broken = store / "imagenet_broken"
    stored.write_folder(broken / "train", TRAIN_IMAGES, TRAIN_LABELS)
    stored.write_folder(broken / "val", TEST_IMAGES, TEST_LABELS)
    assert len(_evaluate(broken)) == 2
    path = broken / "train" / "class001" / "004.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"{path}, row 4 of split 'train'"):
        next(_load(broken, batch=8))
    stream = _load(broken, batch=7, skip_corrupt=True)
    assert sorted(next(stream).data_index) == [0, 1, 2, 3, 5, 6, 7]
    (message,) = stream.skipped
    assert str(path) in message
