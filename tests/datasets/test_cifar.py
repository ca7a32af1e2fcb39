import grain
import jax
import numpy as np
import pytest

from enn import datasets
from enn.datasets import cifar
from tests.support import stored

IMAGES = stored.random_images(16, (32, 32, 3))
LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
MEAN = np.array([0.49139968, 0.48215841, 0.44653091])
STD = np.array([0.24703223, 0.24348513, 0.26158784])


@pytest.fixture(scope="module")
def source(store):
    """Parquet files as the Hugging Face hub has them, of both variants."""
    encoded = [stored.png(image) for image in IMAGES]
    for name, label in [("cifar10", "label"), ("cifar100", "fine_label")]:
        for split, num in [("train", 16), ("test", 6)]:
            path = store / name / f"{split}-00000-of-00001.parquet"
            stored.write_parquet(path, encoded[:num], LABELS[:num], ("img", label))
    return store / "cifar10"


def _cifar10(source, **kwargs):
    defaults = {"train_batch": 8, "eval_batch": 3, "train_data_parallelism": False}
    return datasets.Cifar10(source=source, **(defaults | kwargs))


def _normalised(images):
    return (images / 255 - MEAN) / STD


def _preprocess(image, seed=0, **kwargs):
    defaults = {
        "normalization_mode": "custom",
        "random_crop": False,
        "random_flip": False,
        "cutout": False,
        "keep_image_size": False,
        "is_training": True,
        "rng": np.random.default_rng(seed),
    }
    batch = datasets.ArrayBatch(x=image, y=np.int64(1))
    return cifar.preprocess_batch(batch, **(defaults | kwargs)).x


@pytest.mark.parametrize(
    ("cls", "variant", "cutout"),
    [
        (datasets.Cifar, datasets.CifarVariant.CIFAR10, False),
        (datasets.Cifar10, datasets.CifarVariant.CIFAR10, False),
        (datasets.Cifar100, datasets.CifarVariant.CIFAR100, True),
    ],
)
def test_fields_come_in_the_order_of_the_original_with_its_defaults(
    cls, variant, cutout
):
    dataset = cls()
    fields = stored.arguments(cls)
    del fields["train_ds_transformer"], fields["eval_ds_transformers"]
    assert list(fields.items())[:11] == [
        ("cifar_variant", variant),
        ("train_batch", 128),
        ("eval_batch", 100),
        ("normalization_mode", "custom"),
        ("random_flip", True),
        ("random_crop", True),
        ("cutout", cutout),
        ("keep_image_size", cutout),
        ("num_train", 50_000),
        ("train_data_parallelism", True),
        ("eval_data_parallelism", False),
    ]
    assert dataset.num_classes == variant.num_classes == variant.value
    assert dataset.eval_input_shape == (32, 32, 3)
    assert variant.tfds_name == variant.name.lower()


def test_splits():
    assert [split.num_examples for split in datasets.Cifar10Split] == [50000, 10000]


def test_training_crops_and_evaluation_does_not(source):
    dataset = _cifar10(source)
    stream = dataset.train_dataset()
    epoch = [next(stream) for _ in range(2)]
    assert [batch.x.shape for batch in epoch] == [(8, 24, 24, 3)] * 2
    assert epoch[0].x.dtype == np.float32
    index = np.concatenate([batch.data_index for batch in epoch])
    assert sorted(index) == list(range(16))
    labels = np.concatenate([batch.y for batch in epoch])
    np.testing.assert_array_equal(labels, np.array(LABELS)[index])
    batches = list(dataset.eval_datasets()["eval"])
    np.testing.assert_allclose(
        np.concatenate([batch.x for batch in batches]),
        _normalised(IMAGES[:6]),
        atol=1e-5,
    )
    np.testing.assert_array_equal(batches[1].data_index, [3, 4, 5])


def test_cifar100_keeps_the_size_and_reads_fine_labels(source):
    dataset = datasets.Cifar100(train_batch=8, source=source.parent / "cifar100")
    batch = next(dataset.train_dataset())
    assert batch.x.shape == (1, 8, 32, 32, 3)
    np.testing.assert_array_equal(batch.y, np.array(LABELS)[batch.data_index])


def test_only_the_first_num_train_examples_are_trained_on(source):
    stream = _cifar10(source, num_train=5, train_batch=5).train_dataset()
    assert sorted(next(stream).data_index) == [0, 1, 2, 3, 4]
    for num_train in (0, -2):
        dataset = _cifar10(source, num_train=num_train)
        with pytest.raises(ValueError, match=f"num_train must be .*{num_train}"):
            dataset.train_dataset()


def test_augmentation_differs_between_epochs_and_repeats_for_the_seed(source):
    def images(seed):
        stream = _cifar10(source, seed=seed, train_batch=16).train_dataset()
        epochs = [next(stream) for _ in range(2)]
        return [epoch.x[np.argsort(epoch.data_index)] for epoch in epochs]

    first, second = images(0)
    assert sum(np.array_equal(*pair) for pair in zip(first, second, strict=True)) < 3
    again = images(0)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    other, _ = images(1)
    assert sum(np.array_equal(*pair) for pair in zip(first, other, strict=True)) < 3


def test_data_indices_number_training_examples_before_the_transformer(source):
    outside = datasets.get_dataset_transform_from_type(
        datasets.OodVariant.OUT_DISTRIBUTION, [9, 5]
    )
    dataset = _cifar10(source, train_ds_transformer=outside, train_batch=6)
    batch = next(dataset.train_dataset())
    assert sorted(batch.data_index) == [4, 5, 8, 10, 12, 14]


def test_training_transformers_see_bytes(source):
    def keep_bytes(dataset: grain.MapDataset) -> grain.MapDataset:
        def check(example):
            assert example.x.dtype == np.uint8
            np.testing.assert_array_equal(example.x, IMAGES[example.data_index])
            return example

        return dataset.map(check)

    dataset = _cifar10(source, train_ds_transformer=keep_bytes)
    assert next(dataset.train_dataset()).y.shape == (8,)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("custom", lambda x: (x - MEAN) / STD),
        ("identity", lambda x: 2 * x - 1),
        ("standard", lambda x: (x - x.mean()) / x.std()),
    ],
)
def test_normalisation(mode, expected):
    # The original crashed in every mode but 'custom'.
    result = _preprocess(IMAGES[0], normalization_mode=mode)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected(IMAGES[0] / 255), atol=1e-5)


def test_an_unknown_normalisation_raises():
    with pytest.raises(ValueError, match="'custom', 'standard', 'identity'; got 'non"):
        _preprocess(IMAGES[0], normalization_mode="none")


def _windows(image, size):
    return np.lib.stride_tricks.sliding_window_view(image, (size, size), (0, 1))


def test_crops_are_windows_of_the_image():
    windows = _windows(_normalised(IMAGES[0]).astype(np.float32), 24)
    offsets = set()
    for seed in range(60):
        crop = np.moveaxis(_preprocess(IMAGES[0], seed, random_crop=True), -1, 0)
        distance = np.abs(windows - crop).max((2, 3, 4))
        assert distance.min() < 1e-5
        offsets.add(np.unravel_index(distance.argmin(), distance.shape))
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(9))


def test_crops_at_full_size_shift_by_two_pixels_and_pad_with_zeros():
    padded = np.pad(_normalised(IMAGES[0]), [(2, 2), (2, 2), (0, 0)])
    windows = _windows(padded.astype(np.float32), 32)
    offsets = set()
    for seed in range(60):
        crop = _preprocess(IMAGES[0], seed, random_crop=True, keep_image_size=True)
        distance = np.abs(windows - np.moveaxis(crop, -1, 0)).max((2, 3, 4))
        assert distance.min() < 1e-5
        offsets.add(np.unravel_index(distance.argmin(), distance.shape))
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(5))


def test_flips_and_cutouts_are_drawn_apart():
    whole = _preprocess(IMAGES[0])
    found = set()
    for seed in range(40):
        image = _preprocess(IMAGES[0], seed, random_flip=True, cutout=True)
        cut = (image == 0).all(-1)
        flipped = np.array_equal(image[~cut], whole[:, ::-1][~cut])
        assert flipped or np.array_equal(image[~cut], whole[~cut])
        assert cut.sum() in (0, 16 * 16)
        found.add((flipped, bool(cut.any())))
    assert len(found) == 4


def test_evaluation_is_not_augmented():
    result = _preprocess(
        IMAGES[0], random_crop=True, random_flip=True, cutout=True, is_training=False
    )
    np.testing.assert_allclose(result, _normalised(IMAGES[0]), atol=1e-5)


def test_training_images_must_be_32_by_32():
    with pytest.raises(ValueError, match=r"\[32, 32, 3\], got \[28, 28, 3\]"):
        _preprocess(IMAGES[0][:28, :28])


def test_without_a_generator_draws_differ():
    images = [_preprocess(IMAGES[0], rng=None, random_crop=True) for _ in range(10)]
    assert any(not np.array_equal(images[0], image) for image in images)


def test_processes_draw_apart_on_shards_of_their_own(source, monkeypatch):
    batches = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        batches.append(next(_cifar10(source).train_dataset()))
    assert sorted(batches[0].data_index) == list(range(0, 16, 2))
    assert sorted(batches[1].data_index) == list(range(1, 16, 2))
