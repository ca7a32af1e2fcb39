"""Experiments train on what users have as data, with the numbers of `ArrayBatch`."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from enn.datasets import ArrayBatch
from enn.supervised import batches
from tests.support import tiny

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
Y = X @ np.array([1.0, -1.0, 0.5], np.float32)
SIZE = 4


class Tensor:
    """What a tensor of another library shows to NumPy."""

    def __init__(self, values: np.ndarray):
        self._values = values
        self.shape = values.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._values


class Loader:
    """Gives lists of tensors, one pass for each `iter`, as PyTorch's does."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        return ([Tensor(x), Tensor(y)] for x, y in _pairs())

    def __len__(self) -> int:
        return 3


def _pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return ((X[i : i + SIZE], Y[i : i + SIZE, None]) for i in range(0, 12, SIZE))


def _forever(make: Callable[[np.ndarray, np.ndarray], Any]) -> Iterator[Any]:
    while True:
        yield from (make(*pair) for pair in _pairs())


def _hugging_face(library: str | None) -> Any:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y[:, None].tolist()})
    return rows.with_format(library).batch(SIZE)


def _torch(make_loader: Callable[[Any], Any]) -> Any:
    torch = pytest.importorskip("torch", reason=".ci/run installs it")
    return make_loader(torch)


def _tensors(torch: Any) -> Any:
    rows = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y[:, None]))
    return torch.utils.data.DataLoader(rows, batch_size=SIZE)


def _rows_of_hugging_face(torch: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {"image": X.tolist(), "label": Y[:, None].tolist()}
    )
    return torch.utils.data.DataLoader(rows.with_format("torch"), batch_size=SIZE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _forever(lambda x, y: (x, y)),
        lambda: _forever(lambda x, y: [x, y]),
        lambda: _forever(lambda x, y: {"y": y, "x": x}),
        lambda: _forever(lambda x, y: {"label": y, "image": x}),
        lambda: list(_pairs()),
        Loader,
        lambda: _hugging_face("numpy"),
        lambda: _torch(lambda torch: _hugging_face("torch")),
        lambda: _torch(_tensors),
        lambda: _torch(_rows_of_hugging_face),
    ],
    ids=[
        "pair",
        "list",
        "dict",
        "image",
        "list of pairs",
        "loader",
        "hugging face",
        "hugging face in torch",
        "torch loader",
        "torch loader of hugging face",
    ],
)
def test_training_gives_the_same_numbers(make: Callable[[], Any]) -> None:
    expected = tiny.make_experiment(_forever(lambda x, y: ArrayBatch(x=x, y=y)))
    experiment = tiny.make_experiment(make(), eval_datasets={"test": make()})
    expected.train(7)
    experiment.train(7)
    np.testing.assert_array_equal(
        experiment.state.params["linear"]["w"], expected.state.params["linear"]["w"]
    )
    batch = (X[:2], Y[:2, None])
    key = jax.random.key(0)
    assert experiment.loss(batch, key) == expected.loss(
        ArrayBatch(x=batch[0], y=batch[1]), key
    )


@pytest.mark.parametrize(
    "data", [ArrayBatch(x=X, y=Y), (X, Y), {"x": X, "y": Y}, {"x": X, "y": Y.tolist()}]
)
def test_arrays_in_memory_are_one_batch(data: Any) -> None:
    experiment = tiny.make_experiment(data)
    batch = next(experiment.dataset)
    assert batch.y.shape == (12, 1)
    order = batch.data_index[:, 0]
    np.testing.assert_array_equal(batch.x, X[order])
    np.testing.assert_array_equal(batch.y[:, 0], Y[order])


def test_an_iterator_stays_the_users_own() -> None:
    dataset = tiny.make_batches()
    assert tiny.make_experiment(dataset).dataset is dataset


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y, Y), r"a pair \(x, y\), or a dict .*; got a tuple of 3"),
        ([X], "got a list of 1"),
        ({"inputs": X, "y": Y}, r"got the keys \['inputs', 'y'\]"),
        ({"x": X, "y": Y, "z": Y}, r"got the keys \['x', 'y', 'z'\]"),
        ((X.tolist(), Y), r"x must be an array.* got a list: pass np\.asarray\(x\)"),
        ((X[0], Y[0]), r"y must be \[batch, 1\] or \[batch\], got a single example"),
    ],
)
def test_batches_of_another_kind(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.make_experiment(iter([batch]))


def test_batches_without_inputs() -> None:
    with pytest.raises(TypeError, match="or init_x must be given; got a ndarray"):
        tiny.make_experiment(iter([X]))


def test_lists_of_hugging_face_without_a_format() -> None:
    with pytest.raises(ValueError, match=r"pass np\.asarray\(x\)"):
        tiny.make_experiment(_hugging_face(None))


def test_a_loader_starts_anew_in_the_middle_of_nothing() -> None:
    passes = iter([list(_pairs()), list(_pairs())[:1], []])

    class Shrinking:
        def __iter__(self) -> Iterator[Any]:
            return iter(next(passes))

    assert len(list(batches.as_batches(Shrinking()))) == 4


def test_an_axis_of_devices_becomes_one_with_that_of_rows() -> None:
    rows = ArrayBatch(
        x=np.arange(24.0).reshape(4, 3, 2), y=np.arange(4), data_index=np.arange(4)
    )
    shared = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), rows)
    merged = batches.as_batch(shared)
    for name in ("x", "y", "data_index"):
        np.testing.assert_array_equal(merged[name], rows[name])
    assert batches.as_batch(rows) is rows
