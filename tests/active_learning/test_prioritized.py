import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import active_learning, base, datasets, networks
from enn.active_learning import prioritized
from tests.support.batches import SMALL_LABELS, SMALL_LOGITS, constant_forward

KEY = jax.random.PRNGKey(3)


def _by_score(scores):
    """A batcher of 3 rows whose priorities are the given scores."""

    def ctor(enn_batch_fwd):
        def priority_fn(params, state, batch, key):
            return jnp.asarray(scores), {}

        return priority_fn

    return active_learning.PrioritizedBatcher(constant_forward(None), 3, ctor)


def _pool(size, **kwargs):
    rows = np.arange(size)
    return datasets.ArrayBatch(x=10.0 * rows, y=rows[:, None], **kwargs)


def _picked(batcher, pool, key=KEY):
    return np.ravel(batcher.sample_batch({}, {}, pool, key).y).tolist()


@pytest.mark.strict
@pytest.mark.parametrize(
    ("name", "rows"),
    [("uniform", [2, 1, 3]), ("variance", [2, 3, 4]), ("margin", [4, 2, 0])],
)
def test_documented_choices(name, rows):
    batcher = active_learning.PrioritizedBatcher(
        constant_forward(SMALL_LOGITS),
        acquisition_size=3,
        priority_fn_ctor=active_learning.get_priority_fn_ctor(name),
    )
    pool = datasets.ArrayBatch(x=np.arange(6), y=SMALL_LABELS)
    picked = batcher.sample_batch({}, {}, pool, KEY)
    assert list(picked.x) == rows
    np.testing.assert_array_equal(picked.y, SMALL_LABELS[rows])


def test_default_priority_is_uniform_and_default_size_64():
    batcher = active_learning.PrioritizedBatcher(constant_forward(SMALL_LOGITS))
    assert batcher.acquisition_size == 64
    batcher.acquisition_size = 3
    assert _picked(batcher, _pool(6)) == [2, 1, 3]


def test_rows_come_in_rising_priority_and_later_ones_win_ties():
    assert _picked(_by_score([5.0, 1.0, 4.0, 2.0]), _pool(4)) == [3, 2, 0]
    assert _picked(_by_score([1.0, 1.0, 0.0, 1.0, 1.0]), _pool(5)) == [1, 3, 4]


def test_nan_is_an_error_that_names_the_row_and_under_jit_the_lowest_priority():
    # It sorted last, and so won.
    scores = np.array([1.0, np.nan, -5.0, np.nan, 2.0], np.float32)
    with pytest.raises(ValueError, match="got NaN in row 1 of 5"):
        _picked(_by_score(scores), _pool(5))
    ids = np.arange(5)[:, None] + 30
    with pytest.raises(ValueError, match=r"row 1 of 5 \(data_index 31\)"):
        _picked(_by_score(scores), _pool(5, data_index=ids))
    sample = jax.jit(_by_score(scores).sample_batch)
    assert np.ravel(sample({}, {}, _pool(5), KEY).y).tolist() == [2, 0, 4]


@pytest.mark.parametrize("size", [1, 2])
def test_small_pools_are_taken_whole(size):
    batcher = active_learning.PrioritizedBatcher(
        constant_forward(SMALL_LOGITS[:, :size])
    )
    assert sorted(_picked(batcher, _pool(size))) == list(range(size))


def test_all_fields_follow_their_rows_and_scalars_stay():
    # A scalar in extra could not be indexed.
    pool = _pool(
        4,
        data_index=np.arange(4)[:, None] + 100,
        weights=np.arange(4.0)[:, None],
        extra={"image": jnp.arange(8).reshape(4, 2), "epoch": jnp.array(7), "n": 3},
    )
    picked = _by_score([5.0, 1.0, 4.0, 2.0]).sample_batch({}, {}, pool, KEY)
    rows = [3, 2, 0]
    np.testing.assert_array_equal(picked.x, [30, 20, 0])
    np.testing.assert_array_equal(picked.data_index[:, 0], [103, 102, 100])
    np.testing.assert_array_equal(picked.weights[:, 0], rows)
    np.testing.assert_array_equal(picked.extra["image"][:, 0], [6, 4, 0])
    assert (picked.extra["epoch"], picked.extra["n"]) == (7, 3)


@pytest.mark.parametrize("wrong", [0, -1, 2.5])
def test_acquisition_size_must_be_a_positive_integer(wrong):
    # Zero took the whole pool.
    with pytest.raises(ValueError, match="acquisition_size must be an integer >= 1"):
        active_learning.PrioritizedBatcher(constant_forward(None), wrong)
    batcher = _by_score([1.0])
    with pytest.raises(ValueError, match="acquisition_size must be an integer >= 1"):
        batcher.acquisition_size = wrong
    assert batcher.acquisition_size == 3


@pytest.mark.strict
def test_sampling_compiles_with_the_size_of_the_first_call():
    batcher = active_learning.PrioritizedBatcher(
        constant_forward(SMALL_LOGITS), acquisition_size=3
    )
    sample = jax.jit(batcher.sample_batch)
    assert np.ravel(sample({}, {}, _pool(6), KEY).y).tolist() == [2, 1, 3]
    batcher.acquisition_size = 2
    assert len(sample({}, {}, _pool(6), KEY).y) == 3
    assert _picked(batcher, _pool(6)) == [1, 3]


def test_selects_with_the_predictions_of_a_network():
    def apply(params, state, inputs, index):
        return inputs @ params["w"] * index[None], state

    enn = base.EpistemicNetwork(apply, None, networks.GaussianIndexer(2))
    rng = np.random.default_rng(0)
    pool = datasets.ArrayBatch(x=rng.normal(size=(8, 5)), y=np.zeros([8, 1], int))
    params, state = {"w": rng.normal(size=(5, 2))}, {}
    batch_fwd = networks.make_batch_fwd(enn, num_enn_samples=6)
    ctor = active_learning.get_priority_fn_ctor("bald")
    batcher = active_learning.PrioritizedBatcher(batch_fwd, 2, ctor)
    picked = batcher.sample_batch(params, state, pool, KEY)
    scores, _ = ctor(batch_fwd)(params, state, pool, KEY)
    best = np.argsort(scores)[-2:]
    np.testing.assert_array_equal(picked.x, np.asarray(pool.x)[best])


def test_get_at_index_keeps_the_structure():
    tree = {"a": np.arange(5), "b": [jnp.arange(10).reshape(5, 2)], "c": 1.5}
    picked = prioritized.get_at_index(tree, np.array([4, 1]))
    np.testing.assert_array_equal(picked["a"], [4, 1])
    np.testing.assert_array_equal(picked["b"][0], [[8, 9], [2, 3]])
    assert picked["c"] == 1.5


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([False, True, True, False])])
def test_get_at_index_takes_what_arrays_take(rows):
    tree = {"a": np.arange(4), "b": jnp.arange(4)}
    for leaf in prioritized.get_at_index(tree, rows).values():
        np.testing.assert_array_equal(leaf, [1, 2])


def test_batcher_is_an_active_learner():
    assert isinstance(_by_score([1.0]), active_learning.ActiveLearner)
    with pytest.raises(TypeError, match="abstract"):
        active_learning.ActiveLearner()  # pyrefly: ignore[bad-instantiation]
