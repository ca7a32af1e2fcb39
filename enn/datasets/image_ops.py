"""Operations on one image, a NumPy array `[height, width, channels]`."""

import numpy as np

Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image, in pixels."""


def to_float(image: np.ndarray) -> np.ndarray:
    """Returns bytes as float32 in [0, 1], bit by bit byte · float32(1/255).

    Floats pass as they are.
    """
    if np.issubdtype(image.dtype, np.floating):
        return image
    return image.astype(np.float32) * np.float32(1 / 255)


def standardize(image: np.ndarray) -> np.ndarray:
    """Returns (x - mean) / max(std, 1/√n) over all n elements of the image.

    A constant image becomes zeros. The dtype stays.
    """
    mean = image.mean(dtype=np.float64)
    std = max(image.std(dtype=np.float64), image.size**-0.5)
    return ((image - mean) / std).astype(image.dtype)


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Returns a view of the part of `image` in `box`."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def random_crop(
    image: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns a part of the given size, every position equally likely.

    Raises:
      ValueError: if the image is smaller.
    """
    if image.shape[0] < height or image.shape[1] < width:
        raise ValueError(
            f"image must be at least {height} x {width} to crop, "
            f"got shape {list(image.shape)}."
        )
    top = int(rng.integers(image.shape[0] - height, endpoint=True))
    left = int(rng.integers(image.shape[1] - width, endpoint=True))
    return crop(image, (top, left, height, width))


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image or, with probability ½, its left-right mirror image."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def random_cutout(
    image: np.ndarray, rng: np.random.Generator, size: int = 16
) -> np.ndarray:
    """Returns the image with, at probability ½, one square of zeros.

    The whole square lies within the image, every position equally likely (DeVries &
    Taylor, 2017, https://arxiv.org/abs/1708.04552, where it may stick out).

    Raises:
      ValueError: unless both sides of the image exceed `size`.
    """
    height, width = image.shape[:2]
    if min(height, width) <= size:
        raise ValueError(
            f"image must be larger than the cutout of {size} x {size}, "
            f"got shape {list(image.shape)}."
        )
    if rng.random() < 0.5:
        return image
    top = int(rng.integers(height - size, endpoint=True))
    left = int(rng.integers(width - size, endpoint=True))
    image = image.copy()
    image[top : top + size, left : left + size] = 0
    return image


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the image at another size, float32.

    Keys' cubic convolution with a = -½ (1981, equation 15) at half-pixel centres,
    without antialiasing; results may overshoot the range of the image. Equals
    `jax.image.resize(..., "cubic", antialias=False)`.
    """
    rows = _resize_first_axis(np.asarray(image, np.float32), height)
    return _resize_first_axis(rows.swapaxes(0, 1), width).swapaxes(0, 1)


def _resize_first_axis(image: np.ndarray, new_size: int) -> np.ndarray:
    pixels, weights = _taps(len(image), new_size)
    resized = np.zeros((new_size, *image.shape[1:]), np.float32)
    for k in range(pixels.shape[1]):
        resized += weights[:, k, None, None] * image[pixels[:, k]]
    return resized


def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The four old pixels around each new one, and their weights, `[new_size, 4]`.

    Weights of pixels outside the image are zero and the others add up to one.
    """
    centres = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    pixels = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    t = np.abs(centres[:, None] - pixels)
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    inside = (pixels >= 0) & (pixels < size)
    weights = np.where(inside, np.where(t <= 1, near, far), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(pixels, 0, size - 1), weights.astype(np.float32)


def central_box(
    image_size: tuple[int, int], size: tuple[int, int], margin: int = 32
) -> Box:
    """Returns the central crop that evaluation uses.

    The largest part of the form of `size` that leaves a margin: scaled so that the
    image's tighter side is side + margin, it is `size`.

    Args:
      image_size: height and width of the image.
      size: height and width that the part is to be resized to.
      margin: what is cut off both ends of a side together, at that scale.
    """
    (height, width), (new_height, new_width) = image_size, size
    scale = min(height / (new_height + margin), width / (new_width + margin))
    box_height = max(1, int(scale * new_height))
    box_width = max(1, int(scale * new_width))
    top, left = (height - box_height + 1) // 2, (width - box_width + 1) // 2
    return top, left, box_height, box_width


def random_box(
    image_size: tuple[int, int], rng: np.random.Generator, attempts: int = 10
) -> Box | None:
    """Returns a random crop to train on; None for the whole image, or if all fail.

    The ratio of width to height is uniform in [3/4, 4/3] and the area in [0.08, 1]
    of the image; an attempt fails where the part does not fit or covers less than a
    tenth (Szegedy et al., 2015, https://arxiv.org/abs/1409.4842, section 6).

    Args:
      image_size: height and width of the image.
      rng: source of the draws.
      attempts: number of attempts.
    """
    height, width = image_size
    for _ in range(attempts):
        ratio, fraction = rng.uniform(3 / 4, 4 / 3), rng.uniform(0.08, 1.0)
        area = fraction * height * width
        box_height, box_width = (
            round((area / ratio) ** 0.5),
            round((area * ratio) ** 0.5),
        )
        fits = box_height <= height and box_width <= width
        if (box_height, box_width) == (height, width):
            return None
        if fits and box_height * box_width >= 0.1 * height * width:
            top = int(rng.integers(height - box_height, endpoint=True))
            left = int(rng.integers(width - box_width, endpoint=True))
            return top, left, box_height, box_width
    return None
