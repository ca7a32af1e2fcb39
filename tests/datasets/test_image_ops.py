import jax
import numpy as np
import pytest

from enn.datasets import image_ops
from tests.support import stored

SIZE = (20, 24)


def _image(shape=(*SIZE, 3)):
    return stored.random_images(1, shape)[0]


def test_bytes_become_floats_by_one_multiplication():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    result = image_ops.to_float(image)
    assert result.dtype == np.float32
    expected = [np.float32(value) * np.float32(1 / 255) for value in range(256)]
    np.testing.assert_array_equal(result.ravel(), expected)


def test_floats_stay():
    image = np.array([[[0.25, 2.0]]], np.float32)
    assert image_ops.to_float(image) is image


def test_standardized_images_have_mean_zero_and_deviation_one():
    result = image_ops.standardize(image_ops.to_float(_image()))
    assert result.dtype == np.float32
    np.testing.assert_allclose([result.mean(), result.std()], [0, 1], atol=1e-6)


def test_nearly_constant_images_are_divided_by_one_over_root_n():
    image = np.zeros([10, 10, 1], np.float32)
    image[0, 0] = 0.1
    # Standard deviation 0.00995 is below 1/√100.
    np.testing.assert_allclose(
        image_ops.standardize(image)[:2, 0, 0], [0.99, -0.01], rtol=1e-5
    )


def test_constant_images_become_zeros():
    image = np.full([7, 5, 3], 0.1, np.float32)
    np.testing.assert_array_equal(image_ops.standardize(image), 0)


@pytest.mark.parametrize("new_size", [(32, 25), (9, 24)])
def test_bicubic_resizing_equals_that_of_jax(new_size):
    image = image_ops.to_float(_image())
    expected = jax.image.resize(image, (*new_size, 3), "cubic", antialias=False)
    result = image_ops.resize_bicubic(image, *new_size)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6)
    assert result.min() < 0 < 1 < result.max()


def test_bicubic_resizing_is_the_cubic_of_keys():
    # Halfway between pixels, weights -1/16, 9/16, 9/16, -1/16.
    image = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]).reshape(1, 6, 1)
    result = image_ops.resize_bicubic(image, 1, 3)
    np.testing.assert_allclose(result[0, 1, 0], (-2 + 9 * 4 + 9 * 8 - 16) / 16)
    # At the border one weight is missing: 9/16, 9/16, -1/16 over their sum.
    np.testing.assert_allclose(result[0, 0, 0], (9 + 18 - 4) / 17, rtol=1e-6)


def test_random_crops_are_parts_at_every_offset():
    image = np.arange(6 * 7).reshape(6, 7, 1)
    rng = np.random.default_rng(0)
    offsets = set()
    for _ in range(200):
        part = image_ops.random_crop(image, 4, 5, rng)
        top, left = divmod(int(part[0, 0, 0]), 7)
        np.testing.assert_array_equal(part, image[top : top + 4, left : left + 5])
        offsets.add((top, left))
    assert offsets == {(top, left) for top in range(3) for left in range(3)}


def test_an_image_smaller_than_its_crop_raises():
    with pytest.raises(ValueError, match=r"at least 8 x 5 .* \[6, 7, 1\]"):
        image_ops.random_crop(np.zeros([6, 7, 1]), 8, 5, np.random.default_rng(0))


def test_half_of_the_images_are_mirrored():
    image = _image()
    rng = np.random.default_rng(0)
    results = [image_ops.random_flip(image, rng) for _ in range(400)]
    mirrored = [np.array_equal(result, image[:, ::-1]) for result in results]
    kept = [np.array_equal(result, image) for result in results]
    assert sum(mirrored) + sum(kept) == 400
    # Four standard deviations, 40, around one half.
    assert 160 < sum(mirrored) < 240


def test_cutout_zeroes_one_square_inside_half_of_the_images():
    image = np.ones([*SIZE, 3], np.float32)
    rng = np.random.default_rng(0)
    corners, num_cut = set(), 0
    for _ in range(400):
        rows, columns, _ = np.nonzero(image_ops.random_cutout(image, rng) == 0)
        if len(rows):
            num_cut += 1
            assert len(rows) == 16 * 16 * 3
            assert np.ptp(rows) == np.ptp(columns) == 15
            corners.add((rows.min(), columns.min()))
    assert 160 < num_cut < 240
    assert {top for top, _ in corners} == set(range(5))
    assert {left for _, left in corners} == set(range(9))
    np.testing.assert_array_equal(image, 1)


def test_cutout_needs_a_larger_image():
    with pytest.raises(ValueError, match=r"16 x 16, got shape \[20, 16, 3\]"):
        image_ops.random_cutout(np.ones([20, 16, 3]), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("image_size", "box"),
    [
        ((300, 400), (19, 69, 262, 262)),
        ((256, 256), (16, 16, 224, 224)),
        ((500, 375), (86, 24, 328, 328)),
    ],
)
def test_the_central_box_is_seven_eighths_of_the_tighter_side(image_size, box):
    assert image_ops.central_box(image_size, (224, 224)) == box


def test_random_boxes_keep_to_their_area_and_ratio():
    size = (150, 200)
    rng = np.random.default_rng(0)
    boxes = [image_ops.random_box(size, rng) for _ in range(500)]
    found = np.array([box for box in boxes if box is not None])
    assert len(found) > 490
    top, left, height, width = found.T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == 150
    assert (left + width).max() == 200
    area, ratio = height * width / 30000, width / height
    assert 0.1 <= area.min() < 0.12
    assert 0.8 < area.max() <= 1
    # Rounding to pixels moves the ratio.
    assert ratio.min() == pytest.approx(3 / 4, abs=0.03)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.03)


def test_no_random_box_fits_a_narrow_image():
    rng = np.random.default_rng(0)
    assert image_ops.random_box((1000, 2), rng) is None


def test_a_random_box_is_never_the_whole_image():
    rng = np.random.default_rng(0)
    boxes = [image_ops.random_box((2, 2), rng) for _ in range(100)]
    assert None in boxes
    assert (0, 0, 2, 2) not in boxes
