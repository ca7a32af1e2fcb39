"""Groups of near-identical inputs, for joint predictions.

A joint prediction of inputs that are near each other tells ambiguity from ignorance
better than one of inputs far apart (Osband et al., 2022, "Evaluating high-order
predictive distributions in deep learning", https://arxiv.org/abs/2202.13509).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from enn import _checks
from enn.datasets import base, image_ops
from enn.datasets.utils import select_rows

PerturbFn = Callable[[base.ArrayBatch], base.ArrayBatch]
"""Changes one example."""


def make_repeat_sample_transform(
    num_repeat: int,
    perturb_fn: PerturbFn | Callable[..., base.ArrayBatch],
    limit_data: int | None = None,
    seed: int | None = None,
) -> base.DatasetTransformer:
    """Returns the transformer that perturbs copies of each example: a a b b ...

    A batch size that is a multiple of `num_repeat` keeps the copies of an example in
    one batch. Copies keep all fields, also the data index.

    For joint predictions of near inputs (Osband et al., 2022,
    https://arxiv.org/abs/2202.13509).

    >>> import dataclasses, grain
    >>> from enn import datasets
    >>> def shift(example, rng):
    ...     return dataclasses.replace(example, x=example.x + rng.integers(10))
    >>> examples = grain.MapDataset.source([datasets.ArrayBatch(x=0, y=5)])
    >>> twice = datasets.make_repeat_sample_transform(2, shift, seed=0)(examples)
    >>> [(int(example.x), example.y) for example in twice]
    [(1, 5), (9, 5)]

    Args:
      num_repeat: number of copies of each example, one after the other.
      perturb_fn: changes each copy, independently.
      limit_data: number of copies to keep, all of them if None or 0.
      seed: if given, `perturb_fn` is called with the copy and a
        `numpy.random.Generator`, whose numbers depend on the seed and the position
        of the copy. A function that draws otherwise may not be repeatable.

    Raises:
      ValueError: unless `num_repeat` is an integer >= 1.
    """
    _checks.positive_int("num_repeat", num_repeat)

    def transformer(dataset: Any) -> Any:
        rows = np.repeat(np.arange(len(dataset)), num_repeat)
        copies = select_rows(dataset, rows[: limit_data or None])
        if seed is None:
            return copies.map(perturb_fn)
        return copies.random_map(perturb_fn, seed=seed)

    return transformer


def make_dyadic_transform(
    num_repeat: int,
    limit_data: int | None = None,
    crop_offset: int = 4,
    flip: bool = True,
    seed: int = 0,
) -> base.DatasetTransformer:
    """Returns the transformer to randomly cropped and flipped copies of each image.

    Copies are float32: a random part `crop_offset` smaller on each side, resized back
    (`image_ops.resize_bicubic`, which may overshoot), and mirrored with probability ½.

    For joint predictions of near inputs (Osband et al., 2022,
    https://arxiv.org/abs/2202.13509).

    >>> import grain, numpy as np
    >>> from enn import datasets
    >>> image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    >>> examples = grain.MapDataset.source([datasets.ArrayBatch(x=image, y=3)])
    >>> first, second = datasets.make_dyadic_transform(num_repeat=2)(examples)
    >>> first.x.shape, first.y == second.y, bool((first.x == second.x).all())
    ((8, 8, 1), True, False)

    Args:
      num_repeat: number of copies of each example, one after the other.
      limit_data: number of copies to keep, all of them if None or 0.
      crop_offset: pixels by which the part is smaller; 0 for no crop.
      flip: whether to mirror.
      seed: fixes all draws.

    Raises:
      ValueError: unless `num_repeat` is an integer >= 1, if `crop_offset` is not one
        >= 0 or, on reading, not smaller than the sides of an image.
    """
    _checks.non_negative_int("crop_offset", crop_offset)

    def perturb(batch: base.ArrayBatch, rng: np.random.Generator) -> base.ArrayBatch:
        image = np.asarray(batch.x, np.float32)
        height, width = image.shape[:2]
        if crop_offset >= min(height, width):
            raise ValueError(
                f"crop_offset must be smaller than the sides of the images, got "
                f"{crop_offset} for shape {list(image.shape)}."
            )
        if crop_offset:
            smaller = (height - crop_offset, width - crop_offset)
            part = image_ops.random_crop(image, *smaller, rng)
            image = image_ops.resize_bicubic(part, height, width)
        if flip:
            image = image_ops.random_flip(image, rng)
        return dataclasses.replace(batch, x=image)

    return make_repeat_sample_transform(num_repeat, perturb, limit_data, seed)
