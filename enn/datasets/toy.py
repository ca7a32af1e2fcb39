"""Small synthetic data sets."""

import numpy as np

from enn import _checks
from enn.datasets import base, in_memory


def make_moons(
    n_samples: int = 100, *, shuffle: bool = True, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns points on two interleaved half circles, and which of the two.

    Equals scikit-learn's `make_moons` with `random_state=seed`.

    >>> from enn import datasets
    >>> x, y = datasets.make_moons(5, shuffle=False)
    >>> print(y, x[0])  # The first moon starts at (1, 0).
    [0 0 1 1 1] [1. 0.]

    Args:
      n_samples: number of points; of an odd number, the second moon has one more.
      shuffle: whether to mix the moons.
      noise: standard deviation of Gaussian noise on the points.
      seed: of the shuffle and the noise.

    Returns:
      Points `[n_samples, 2]` and labels 0 or 1, `[n_samples]`.

    Raises:
      ValueError: unless `n_samples` is an integer >= 1, or if `noise` is negative.
    """
    num_lower = (_checks.positive_int("n_samples", n_samples) + 1) // 2
    num_upper = n_samples - num_lower
    if not noise >= 0:
        raise ValueError(f"noise must be >= 0, got {noise!r}.")
    upper, lower = np.linspace(0, np.pi, num_upper), np.linspace(0, np.pi, num_lower)
    points = np.concatenate(
        [
            np.stack([np.cos(upper), np.sin(upper)], axis=1),
            np.stack([1 - np.cos(lower), 1 - np.sin(lower) - 0.5], axis=1),
        ]
    )
    labels = np.repeat([0, 1], [num_upper, num_lower])
    rng = np.random.RandomState(seed)
    if shuffle:
        order = np.arange(n_samples)
        rng.shuffle(order)
        points, labels = points[order], labels[order]
    return points + noise * rng.standard_normal(points.shape), labels


def make_test_data(n_samples: int = 20) -> in_memory.BatchIterator:
    """Returns an iterator over two moons with noise 0.1, all points in each batch.

    >>> from enn import utils
    >>> batch = next(utils.make_test_data(20))
    >>> batch.x.shape, int(batch.y.sum())  # Half of the points in each moon
    ((20, 2), 10)

    Raises:
      ValueError: unless `n_samples` is an integer >= 1.
    """
    x, y = make_moons(n_samples, noise=0.1)
    return in_memory.make_batch_iterator(base.ArrayBatch(x=x, y=y))


def make_regression_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 20 noisy points of x + sin(3x) + sin(12x), with a gap on (0.5, 1).

    >>> from enn import datasets
    >>> x, y = datasets.make_regression_data()
    >>> len(x), bool(((x > 0.5) & (x < 1)).any())
    (20, False)

    Returns:
      Inputs and targets, each `[20]`; the noise has standard deviation 0.1.
    """
    x = np.concatenate([np.linspace(0, 0.5, 10), np.linspace(1, 1.5, 10)])
    noise = 0.1 * np.random.RandomState(0).standard_normal(x.size)
    return x, x + np.sin(3 * x) + np.sin(12 * x) + noise
