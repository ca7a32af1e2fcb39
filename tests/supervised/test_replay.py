"""A ring buffer of the last rows, and what an experiment makes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import supervised
from tests.support import tiny

KEY = jax.random.key(3)


def _rows(first: int, num_rows: int) -> dict[str, np.ndarray]:
    """Rows that tell their step: x is the step, y ten times as much."""
    steps = np.arange(first, first + num_rows, dtype=np.float32)[:, None]
    return {"x": np.tile(steps, (1, 2)), "y": 10 * steps}


@pytest.mark.slow
@given(
    capacity=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=12)
def test_the_last_rows_are_kept_and_know_their_steps(
    capacity: int, sizes: list[int]
) -> None:
    replay = supervised.Replay(capacity, batch_size=64)
    for i, size in enumerate(sizes):
        replay.add(**_rows(sum(sizes[:i]), size))
    batch = replay.sample(KEY)
    total = sum(sizes)
    assert (replay.num_added, len(replay)) == (total, min(total, capacity))
    np.testing.assert_array_equal(batch.x[:, :1], batch.data_index)
    np.testing.assert_array_equal(batch.y, 10 * batch.data_index)
    kept = range(max(0, total - capacity), total)
    # 64 draws of at most 4 rows miss one in one of 10^7 cases; the key is fixed.
    assert sorted(set(np.ravel(batch.data_index).tolist())) == list(kept)
    assert int(batch.extra["num_steps"]) == total


def test_rows_are_drawn_uniformly() -> None:
    replay = supervised.Replay(4, batch_size=1)
    replay.add(**_rows(0, 7))
    batch = replay.sample(KEY, 8000)
    counts = np.bincount(np.ravel(batch.data_index), minlength=7)
    assert not counts[:3].any()
    # 5 standard deviations of a count: 5 * sqrt(8000 * 1/4 * 3/4) = 194.
    np.testing.assert_allclose(counts[3:], 2000, atol=194)


def test_batches_are_endless_and_fixed_by_the_seed() -> None:
    def draws(seed: int) -> list[list[int]]:
        replay = supervised.Replay(50, batch_size=6, seed=seed)
        replay.add(**_rows(0, 50))
        return [np.ravel(next(replay).data_index).tolist() for _ in range(4)]

    assert draws(0) == draws(0) != draws(1)
    assert len({tuple(batch) for batch in draws(0)}) == 4


def test_rows_are_arrays_or_trees_of_any_type_and_targets_need_no_column() -> None:
    replay = supervised.Replay(3, batch_size=2)
    x = {"image": jnp.ones([2, 4, 4], jnp.uint8), "id": np.array([5, 6])}
    replay.add(x=x, y=np.array([1, 2]))
    batch = next(replay)
    assert batch.x["image"].shape == (2, 4, 4)
    assert batch.x["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch.x["id"][:, None], batch.y + 4)
    leaves = jax.tree.leaves(batch)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.parametrize("name", ["capacity", "batch_size"])
@pytest.mark.parametrize("wrong", [0, -1, 2.5])
def test_sizes_are_positive_integers(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
        supervised.Replay(**{"capacity": 3, "batch_size": 2} | {name: wrong})


def test_what_does_not_fit_is_an_error_and_changes_nothing() -> None:
    replay = supervised.Replay(3, batch_size=2)
    with pytest.raises(ValueError, match="holds no rows: call `add`"):
        next(replay)
    with pytest.raises(ValueError, match="same number of rows, got 2 of y and x of"):
        replay.add(x=np.ones([3, 2]), y=np.ones([2, 1]))
    assert replay.num_added == 0
    replay.add(**_rows(0, 2))
    with pytest.raises(ValueError, match=r"must have shapes \[\[2\], \[1\]\], got"):
        replay.add(x=np.ones([1, 3]), y=np.ones([1]))
    assert replay.num_added == 2
    assert set(np.ravel(replay.sample(KEY, 20).x).tolist()) == {0, 1}


@pytest.mark.slow
def test_an_experiment_trains_on_rows_that_come_in() -> None:
    data = tiny.make_data()

    def train() -> supervised.Experiment:
        replay = supervised.Replay(100, batch_size=5)
        replay.add(data.x[:1], data.y[:1])
        experiment = tiny.make_experiment(replay, eval_datasets={})
        for i in range(1, 12):
            replay.add(data.x[i : i + 1], data.y[i : i + 1])
            experiment.train(30)
        return experiment

    experiment, again = train(), train()
    losses = [row["loss"] for row in experiment.logger.rows]
    assert len(losses) == 330
    assert losses == [row["loss"] for row in again.logger.rows]
    untrained = tiny.make_experiment().loss(data, KEY)
    assert experiment.loss(data, KEY) < 0.8 * untrained
