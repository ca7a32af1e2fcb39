import itertools

import numpy as np
import pytest

from enn import datasets, utils


@pytest.mark.parametrize("n_samples", [1, 2, 7, 100])
def test_moons_equal_scikit_learns(n_samples):
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    cases = itertools.product([True, False], [0.0, 0.3], [0, 5])
    for shuffle, noise, seed in cases:
        wanted = sklearn_datasets.make_moons(
            n_samples, shuffle=shuffle, noise=noise, random_state=seed
        )
        points, labels = datasets.make_moons(
            n_samples, shuffle=shuffle, noise=noise, seed=seed
        )
        np.testing.assert_allclose(points, wanted[0], rtol=1e-14)
        np.testing.assert_array_equal(labels, wanted[1])


# Values of scikit-learn 1.9.1 with random_state=3, for where it is not installed.
STORED = [
    (
        5,
        True,
        0.1,
        [
            [1.0096497468072008, -0.6863492703364491],
            [1.97226117974856, 0.46452410207310124],
            [-1.008274148148246, -0.0627000676823846],
            [0.9956181831024071, -0.04772180303595027],
            [-0.1313864753362682, 0.5884622380499585],
        ],
        [1, 1, 0, 0, 1],
    ),
    (4, False, 0.0, [[1, 0], [-1, 0], [0, 0.5], [2, 0.5]], [0, 0, 1, 1]),
]


@pytest.mark.parametrize(("n", "shuffle", "noise", "points", "labels"), STORED)
def test_moons_equal_stored_values(n, shuffle, noise, points, labels):
    actual = datasets.make_moons(n, shuffle=shuffle, noise=noise, seed=3)
    np.testing.assert_allclose(actual[0], points, atol=1e-15)
    np.testing.assert_array_equal(actual[1], labels)


@pytest.mark.parametrize("argument", ["n_samples", "noise"])
def test_wrong_arguments_are_errors(argument):
    with pytest.raises(ValueError, match=argument):
        datasets.make_moons(**{argument: -1})


def test_test_data_are_full_batches_of_moons():
    iterator = utils.make_test_data(20)
    points, labels = datasets.make_moons(20, noise=0.1, seed=0)
    np.testing.assert_array_equal(iterator.data.x, points)
    np.testing.assert_array_equal(iterator.data.y[:, 0], labels)
    batch = next(iterator)
    assert batch.x.shape == (20, 2)
    assert batch.x.dtype == np.float64
    assert batch.y.dtype == np.int64


def test_regression_data():
    x, y = datasets.make_regression_data()
    np.testing.assert_allclose(x[[0, 9, 10, 19]], [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(y[[0, -1]], [0.17640523, -0.31392694], rtol=1e-7)
    noise = y - x - np.sin(3 * x) - np.sin(12 * x)
    np.testing.assert_allclose(noise[1], 0.1 * 0.40015721, rtol=1e-6)
