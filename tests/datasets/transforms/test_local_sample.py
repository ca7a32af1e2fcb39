import grain
import numpy as np
import pytest

from enn import datasets
from tests.support import stored

IMAGES = stored.random_images(3, (10, 12, 3)).astype(np.float32) / 255


class Examples:
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, row):
        return datasets.ArrayBatch(
            x=IMAGES[row], y=np.int64(row), data_index=np.int64(row + 5)
        )


def _apply(transformer):
    return list(transformer(grain.MapDataset.source(Examples())))


def test_copies_follow_each_other_and_keep_their_data_index():
    # The original dropped the data index.
    transformer = datasets.make_repeat_sample_transform(2, lambda batch: batch)
    copies = _apply(transformer)
    assert [int(copy.y) for copy in copies] == [0, 0, 1, 1, 2, 2]
    assert [int(copy.data_index) for copy in copies] == [5, 5, 6, 6, 7, 7]
    np.testing.assert_array_equal(copies[3].x, IMAGES[1])


def test_each_copy_is_perturbed_on_its_own():
    counter = iter(range(100))
    transformer = datasets.make_repeat_sample_transform(
        3, lambda batch: batch.replace(x=next(counter))
    )
    dataset = transformer(grain.MapDataset.source(Examples()))
    assert [dataset[i].x for i in range(len(dataset))] == list(range(9))


@pytest.mark.parametrize(("limit", "num"), [(4, 4), (0, 6), (None, 6), (100, 6)])
def test_the_limit_counts_copies_and_may_cut_a_group(limit, num):
    transformer = datasets.make_repeat_sample_transform(
        2, lambda batch: batch, limit_data=limit
    )
    assert [int(copy.y) for copy in _apply(transformer)] == [0, 0, 1, 1, 2, 2][:num]


def test_seeded_perturbations_repeat_and_differ_between_copies_and_seeds():
    def draws(seed):
        transformer = datasets.make_repeat_sample_transform(
            2, lambda batch, rng: batch.replace(x=rng.random()), seed=seed
        )
        return [copy.x for copy in _apply(transformer)]

    assert draws(0) == draws(0)
    assert len({*draws(0), *draws(1)}) == 12


def test_dyadic_copies_without_crop_and_flip_are_identical():
    transformer = datasets.make_dyadic_transform(3, crop_offset=0, flip=False)
    copies = _apply(transformer)
    assert len(copies) == 9
    for copy in copies:
        np.testing.assert_array_equal(copy.x, IMAGES[int(copy.y)])
        assert copy.x.dtype == np.float32


def test_dyadic_flips_are_mirror_images():
    copies = _apply(datasets.make_dyadic_transform(20, crop_offset=0))
    mirrored = [np.array_equal(copy.x, IMAGES[int(copy.y)][:, ::-1]) for copy in copies]
    kept = [np.array_equal(copy.x, IMAGES[int(copy.y)]) for copy in copies]
    assert sum(mirrored) + sum(kept) == 60
    assert 10 < sum(mirrored) < 50


def test_dyadic_copies_are_parts_resized_to_the_same_size():
    copies = _apply(datasets.make_dyadic_transform(8, crop_offset=2, flip=False))
    parts = {
        (top, left): IMAGES[0][top : top + 8, left : left + 10]
        for top in range(3)
        for left in range(3)
    }
    from enn.datasets import image_ops

    resized = {at: image_ops.resize_bicubic(part, 10, 12) for at, part in parts.items()}
    found = {
        at
        for copy in copies[:8]
        for at, image in resized.items()
        if np.array_equal(copy.x, image)
    }
    assert len(found) > 1
    assert all(
        any(np.array_equal(copy.x, image) for image in resized.values())
        for copy in copies[:8]
    )


def test_dyadic_copies_repeat_for_the_same_seed():
    # The original was unseeded.
    first, again, other = (
        np.stack([copy.x for copy in _apply(datasets.make_dyadic_transform(2, **kw))])
        for kw in ({}, {}, {"seed": 1})
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_crop_as_large_as_the_image_raises():
    transformer = datasets.make_dyadic_transform(2, crop_offset=10)
    with pytest.raises(ValueError, match=r"got 10 for shape \[10, 12, 3\]"):
        _apply(transformer)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_repeat": 0}, "num_repeat must be an integer >= 1"),
        ({"num_repeat": 2, "crop_offset": -1}, "crop_offset must be an integer >= 0"),
        ({"num_repeat": 2, "crop_offset": 2.5}, "crop_offset .* got 2.5"),
    ],
)
def test_wrong_numbers_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_dyadic_transform(**kwargs)


def test_copies_of_a_repeated_dataset_are_perturbed_anew_each_epoch():
    transformer = datasets.make_dyadic_transform(1, crop_offset=2)
    epochs = transformer(grain.MapDataset.source(Examples())).repeat(2)
    assert not np.array_equal(epochs[0].x, epochs[3].x)
    assert int(epochs[3].y) == 0
