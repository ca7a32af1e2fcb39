"""Splits by class: what training sees, and what it does not."""

from collections.abc import Sequence

import numpy as np

from enn import _checks
from enn.datasets import base
from enn.datasets.utils import LabelSelection


def sample_classes(num_classes: int, num_samples: int, seed: int) -> np.ndarray:
    """Returns `num_samples` of the classes 0, ..., `num_classes` - 1, all different.

    >>> from enn.datasets.transforms import ood
    >>> len(set(ood.sample_classes(10, num_samples=4, seed=0).tolist()))
    4
    >>> ood.sample_classes(3, num_samples=4, seed=0)
    Traceback (most recent call last):
        ...
    ValueError: Cannot take a larger sample than population when replace is False

    Args:
      num_classes: number of classes to draw from.
      num_samples: number of classes to draw.
      seed: fixes the draw.

    Returns:
      Labels, int64 `[num_samples]`, in the order drawn.

    Raises:
      ValueError: if there are fewer classes than samples.
    """
    rng = np.random.default_rng(seed)
    return rng.choice(range(num_classes), size=(num_samples,), replace=False)


def get_dataset_transform_from_type(
    dataset_type: base.OodVariant, ood_labels: Sequence[int] | np.ndarray
) -> base.DatasetTransformer:
    """Returns the transformer that keeps one side of a split by class, in order.

    >>> import grain
    >>> from enn import datasets
    >>> rows = [datasets.ArrayBatch(x=k, y=k) for k in range(4)]
    >>> out = datasets.OodVariant.OUT_DISTRIBUTION
    >>> transform = datasets.get_dataset_transform_from_type(out, ood_labels=[1, 3])
    >>> [example.y for example in transform(grain.MapDataset.source(rows))]
    [1, 3]

    Args:
      dataset_type: in-distribution examples have none of `ood_labels`,
        out-of-distribution examples one of them, and the whole is both.
      ood_labels: labels that are out of distribution; there may be none.

    Raises:
      ValueError: unless `dataset_type` is an `OodVariant`.
    """
    _checks.one_of("dataset_type", dataset_type, base.OodVariant)
    if dataset_type is base.OodVariant.WHOLE:
        return base.identity_transformer
    labels_out = np.asarray(ood_labels, np.int64)
    keep_out = dataset_type is base.OodVariant.OUT_DISTRIBUTION

    def rows(labels: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(labels, labels_out) == keep_out)

    return LabelSelection(rows)


def make_ood_transformers(
    num_classes: int,
    fraction_ood_classes: float = 0.2,
    ood_proportion_in_train: float = 0.001,
    seed: int = 321,
) -> tuple[base.DatasetTransformer, dict[str, base.DatasetTransformer]]:
    """Returns transformers that keep some classes, nearly or wholly, from training.

    With a proportion p in (0, 1), training examples are drawn one by one from those out
    of distribution with probability p, and from those in distribution otherwise, each
    kind in its order, until the kind drawn has run out. Every epoch has the same ones.

    Numbers follow the original `enn`: the number of classes out of distribution is
    `int(fraction_ood_classes * num_classes)`, which rounds 0.29 * 100 down to 28.

    >>> import grain
    >>> from enn import datasets
    >>> rows = [datasets.ArrayBatch(x=label, y=label) for label in range(10)]
    >>> train, tests = datasets.make_ood_transformers(10, ood_proportion_in_train=0)
    >>> examples = grain.MapDataset.source(rows)
    >>> len(train(examples)), {k: len(test(examples)) for k, test in tests.items()}
    (8, {'eval': 10, 'eval_in_dist': 8, 'eval_out_dist': 2})

    Args:
      num_classes: number of classes.
      fraction_ood_classes: fraction of the classes out of distribution.
      ood_proportion_in_train: p, in [0, 1].
      seed: fixes the classes and which kind each training example is.

    Returns:
      The training transformer, and by name (`OodVariant.valid_values()`) the
      evaluation transformers.

    Raises:
      ValueError: if a fraction or proportion is outside [0, 1].
    """
    for name, value in [
        ("fraction_ood_classes", fraction_ood_classes),
        ("ood_proportion_in_train", ood_proportion_in_train),
    ]:
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value!r}.")
    num_ood = int(fraction_ood_classes * num_classes)
    ood_labels = sample_classes(num_classes, num_ood, seed)

    def mixed_rows(labels: np.ndarray) -> np.ndarray:
        is_out = np.isin(labels, ood_labels)
        rng = np.random.default_rng(seed)
        draws = rng.random(len(labels) + 1) < ood_proportion_in_train
        # The k-th draw of a kind takes its k-th row; one draw too many has none.
        nth = np.where(draws, np.cumsum(draws), np.cumsum(~draws))
        end = np.argmax(nth > np.where(draws, is_out.sum(), (~is_out).sum()))
        rows = np.empty(end, np.int64)
        for kind in (False, True):
            drawn = draws[:end] == kind
            rows[drawn] = np.flatnonzero(is_out == kind)[: drawn.sum()]
        return rows

    eval_transformers = {
        variant.value: get_dataset_transform_from_type(variant, ood_labels)
        for variant in base.OodVariant
    }
    if ood_proportion_in_train in (0, 1):
        kinds = (base.OodVariant.IN_DISTRIBUTION, base.OodVariant.OUT_DISTRIBUTION)
        train = eval_transformers[kinds[int(ood_proportion_in_train)].value]
    else:
        train = LabelSelection(mixed_rows)
    return train, eval_transformers
