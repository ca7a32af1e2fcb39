import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import datasets, utils


def _data(num_data, **fields):
    """Rows that know their number: every field of row i holds i."""
    rows = np.arange(num_data)
    return datasets.ArrayBatch(
        x=np.stack([rows, rows], 1).astype(np.float32), y=rows, **fields
    )


def _rows(iterator, num_batches):
    return np.concatenate([next(iterator).y[:, 0] for _ in range(num_batches)])


def _assert_equal(actual, wanted):
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(0, 3))


def test_utils_exports_the_iterator():
    assert utils.make_batch_iterator is datasets.make_batch_iterator


def test_fills_in_shapes_ids_and_weights():
    batch = next(datasets.make_batch_iterator(_data(3)))
    assert batch.y.shape == batch.data_index.shape == batch.weights.shape == (3, 1)
    assert batch.data_index.dtype == np.int64
    assert batch.weights.dtype == np.float64
    np.testing.assert_array_equal(batch.data_index, batch.y)
    np.testing.assert_array_equal(batch.weights, np.ones([3, 1]))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))


@pytest.mark.strict
def test_keeps_dtypes_given_fields_and_rows_together():
    data = _data(
        5,
        data_index=np.arange(5, dtype=np.int32)[:, None] + 10,
        weights=np.arange(5, dtype=np.float16),
        extra={"image": np.arange(20.0).reshape(5, 2, 2)},
    )
    batch = next(datasets.make_batch_iterator(data, 3))
    rows = batch.y[:, 0]
    assert batch.x.dtype == np.float32
    assert batch.y.dtype == np.int64
    assert batch.data_index.dtype == np.int32
    np.testing.assert_array_equal(batch.x, np.stack([rows, rows], 1))
    np.testing.assert_array_equal(batch.data_index[:, 0], rows + 10)
    np.testing.assert_array_equal(batch.weights, rows.astype(np.float16))
    np.testing.assert_array_equal(batch.extra["image"], data.extra["image"][rows])


def test_takes_jax_arrays_and_nested_inputs():
    data = datasets.ArrayBatch(x={"ids": jnp.arange(4)}, y=jnp.arange(4)[:, None])
    batch = next(datasets.make_batch_iterator(data, 2))
    np.testing.assert_array_equal(batch.x["ids"], batch.y[:, 0])
    assert type(batch.x["ids"]) is np.ndarray


def test_takes_a_list_of_labels():
    batch = next(datasets.make_batch_iterator(_data(3).replace(y=[2, 2, 2])))
    np.testing.assert_array_equal(batch.y, [[2], [2], [2]])


def test_batches_are_copies():
    iterator = datasets.make_batch_iterator(_data(3))
    next(iterator).x[:] = -1
    assert iterator.data.x.min() == 0


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_the_cut_epochs_are_permutations_and_no_batch_is_short(size):
    num_data, batch_size, seed = size
    iterator = datasets.make_batch_iterator(_data(num_data), batch_size, seed)
    batches = [next(iterator) for _ in range(2 * num_data)]
    assert {len(batch.y) for batch in batches} == {batch_size}
    rows = np.concatenate([batch.y[:, 0] for batch in batches])
    for epoch in rows.reshape(-1, num_data):
        assert sorted(epoch) == list(range(num_data))


def test_a_batch_straddles_epochs():
    rows = _rows(datasets.make_batch_iterator(_data(5), 3), 5)
    assert sorted(rows[:5]) == sorted(rows[5:10]) == sorted(rows[10:]) == [*range(5)]


def test_a_batch_may_exceed_the_data():
    rows = next(datasets.make_batch_iterator(_data(5), 8)).y[:, 0]
    assert sorted(rows[:5]) == [*range(5)]
    assert len(set(rows[5:])) == 3


def test_the_order_depends_on_seed_and_epoch_only():
    def epochs(seed, batch_size):
        iterator = datasets.make_batch_iterator(_data(30), batch_size, seed)
        return _rows(iterator, 120 // batch_size).reshape(4, 30)

    np.testing.assert_array_equal(epochs(1, 30), epochs(1, 8))
    assert len({tuple(order) for seed in range(3) for order in epochs(seed, 30)}) == 12
    assert epochs(-1, 30).shape == (4, 30)


def test_large_data_is_shuffled_throughout():
    """The original shuffles within a window of 50 batches only."""
    rows = next(datasets.make_batch_iterator(_data(10_000), 10)).y
    assert rows.max() > 5_000


@pytest.mark.parametrize("batch_size", [None, 0])
def test_no_batch_size_means_all_rows(batch_size):
    iterator = datasets.make_batch_iterator(_data(7), batch_size)
    assert iterator.batch_size == 7
    assert len(next(iterator).y) == 7


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(1, 7))
def test_take_equals_successive_batches(size, num_batches):
    num_data, batch_size, seed = size
    data = _data(num_data, extra={"a": np.arange(num_data)})
    one, many = (datasets.make_batch_iterator(data, batch_size, seed) for _ in range(2))
    next(one), next(many)
    singles = itertools.islice(one, num_batches)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)
    _assert_equal(many.take(num_batches), stacked)
    _assert_equal(next(many), next(one))


def test_take_reaches_over_blocks_of_epochs():
    one, many = (datasets.make_batch_iterator(_data(3000), 2999) for _ in range(2))
    np.testing.assert_array_equal(many.take(4).y.ravel(), _rows(one, 4))


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(0, 9))
def test_restored_iterator_goes_on_where_the_saved_one_stood(size, num_batches):
    num_data, batch_size, seed = size
    saved, restored = (
        datasets.make_batch_iterator(_data(num_data), batch_size, seed)
        for _ in range(2)
    )
    _rows(saved, num_batches + 1)
    next(restored)
    restored.restore(json.loads(json.dumps(saved.state())))
    np.testing.assert_array_equal(_rows(restored, 3), _rows(saved, 3))


def test_restoring_does_not_replay(monkeypatch):
    iterator = datasets.make_batch_iterator(_data(5), 3)
    iterator.restore({**iterator.state(), "position": 10**15})
    made = []
    epochs = iterator._epochs
    monkeypatch.setattr(iterator, "_epochs", lambda b: made.append(b) or epochs(b))
    next(iterator)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (datasets.make_batch_iterator(_data(5), seed=1), "seed"),
        (datasets.make_batch_iterator(_data(6)), "num_data"),
    ],
)
def test_restoring_the_state_of_another_order_is_an_error(other, name):
    with pytest.raises(ValueError, match=name):
        datasets.make_batch_iterator(_data(5)).restore(other.state())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.ArrayBatch(x=np.ones([0, 2]), y=np.ones(0)), "must have rows"),
        (datasets.ArrayBatch(x=np.ones([3, 2]), y=None), "must have y, .* got None"),
        (datasets.ArrayBatch(x=np.ones([1, 2]), y=1), r"got y of shape \(\)"),
        (datasets.ArrayBatch(x=np.ones([3, 2]), y=np.ones(4)), "^x must have 4 rows"),
        (_data(3, data_index=np.ones([2, 1])), "^data_index must have 3 rows"),
        (_data(3, weights=np.ones([2, 1])), "^weights must have 3 rows"),
        (_data(3, extra={"a": np.ones(2)}), "^extra.a must have 3 rows"),
        (_data(3, extra={"a": np.ones([])}), "^extra.a must have 3 rows"),
    ],
)
def test_wrong_rows_are_errors(data, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_batch_iterator(data)


@pytest.mark.parametrize("batch_size", [-1, 2.0, "2", True])
def test_wrong_batch_sizes_are_errors(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        datasets.make_batch_iterator(_data(3), batch_size)


@pytest.mark.parametrize("num_batches", [0, -1, 1.5])
def test_wrong_numbers_of_batches_are_errors(num_batches):
    with pytest.raises(ValueError, match="num_batches"):
        datasets.make_batch_iterator(_data(3)).take(num_batches)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["x", "y"])
def test_non_finite_values_are_named_when_checked(field, bad):
    values = {"x": np.ones([5, 2]), "y": np.ones([5, 1])}
    values[field][[2, 4], 0] = bad
    data = datasets.ArrayBatch(**values)
    datasets.make_batch_iterator(data)
    with pytest.raises(ValueError, match=rf"^{field} must be finite.*row 2\."):
        datasets.make_batch_iterator(data, check_finite=True)


def test_finite_data_pass_the_check():
    datasets.make_batch_iterator(_data(3), check_finite=True)


def _in_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


def test_processes_share_the_rows_and_their_numbers(monkeypatch):
    shards = []
    for index in range(3):
        _in_process(monkeypatch, index, 3)
        shards.append(utils.process_shard(_data(8)))
    for shard, rows in zip(shards, ([0, 3, 6], [1, 4, 7], [2, 5]), strict=True):
        for values in (shard.x, shard.y, shard.data_index):
            np.testing.assert_array_equal(values[:, 0], rows)
        assert shard.weights.shape == (len(rows), 1)
        np.testing.assert_array_equal(
            utils.make_batch_iterator(shard).data.data_index, shard.data_index
        )


def test_one_process_has_all_rows():
    _assert_equal(
        datasets.process_shard(_data(4)), utils.make_batch_iterator(_data(4)).data
    )


def test_fewer_rows_than_processes_are_an_error(monkeypatch):
    _in_process(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match="each of the 3 processes, got 2"):
        utils.process_shard(_data(2))
