import types

import jax
import numpy as np
import optax
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import active_learning, base, datasets, losses, networks, supervised, utils
from enn.loggers import MemoryLogger
from tests.support.batches import normal

NUM_ROWS = 11
X = normal(NUM_ROWS, 2, seed=0)
POOL = datasets.ArrayBatch(x=X, y=(X[:, 0] > 0).astype(int))
EVAL = datasets.ArrayBatch(x=X[:6], y=np.array([0, 1, 0, 1, 0, 1]))


def _apply(params, state, inputs, index):
    """Logits of a linear function of the inputs and the index."""
    return inputs * params["scale"] + index[None], state


LINEAR = base.EpistemicNetwork(_apply, None, networks.GaussianIndexer(2))


class Recorder:
    """Makes experiments that record what they are trained on."""

    def __init__(self, enn=LINEAR):
        self.labelled, self.num_batches, self._enn = [], [], enn

    def __call__(self, labelled):
        self.labelled.append(labelled)
        params = {"scale": np.float32(len(labelled.y))}
        state = types.SimpleNamespace(params=params, network_state={})
        return types.SimpleNamespace(
            enn=self._enn, state=state, train=self.num_batches.append
        )


def _run(make_experiment=None, pool=POOL, eval_data=EVAL, **kwargs):
    sizes = {"initial_size": 2, "acquisition_size": 3, "num_enn_samples": 4}
    return active_learning.run(
        make_experiment or Recorder(), pool, eval_data, **sizes | kwargs
    )


def _assert_equal(curve, other):
    jax.tree.map(np.testing.assert_array_equal, curve, other)


@pytest.mark.slow
@given(
    num_rows=st.integers(1, NUM_ROWS),
    initial_size=st.integers(1, NUM_ROWS),
    acquisition_size=st.integers(1, NUM_ROWS + 2),
    num_acquisitions=st.integers(1, 4),
    priority=st.sampled_from(["uniform", "bald"]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=12)
def test_rows_are_labelled_once_and_counted(
    num_rows, initial_size, acquisition_size, num_acquisitions, priority, seed
):
    initial_size = min(initial_size, num_rows)
    pool = jax.tree.map(lambda leaf: leaf[:num_rows], POOL)
    recorder = Recorder()
    curve = _run(
        recorder,
        pool,
        priority=priority,
        initial_size=initial_size,
        acquisition_size=acquisition_size,
        num_acquisitions=num_acquisitions,
        num_batches=7,
        seed=seed,
    )
    counts = [initial_size]
    while len(counts) <= num_acquisitions and counts[-1] < num_rows:
        counts.append(min(counts[-1] + acquisition_size, num_rows))
    assert [point.num_labels for point in curve] == counts
    assert recorder.num_batches == [7] * len(curve)
    rows = np.concatenate([point.acquired for point in curve])
    assert len(set(rows.tolist())) == len(rows) == counts[-1]
    for count, labelled in zip(counts, recorder.labelled, strict=True):
        np.testing.assert_array_equal(labelled.data_index[:, 0], rows[:count])
        np.testing.assert_array_equal(labelled.x, pool.x[rows[:count]])
        np.testing.assert_array_equal(labelled.y[:, 0], pool.y[rows[:count]])


@pytest.mark.slow
@pytest.mark.parametrize("priority", ["uniform", "bald"])
def test_same_seed_same_curve_and_other_seed_another(priority):
    curve = _run(priority=priority, seed=3)
    _assert_equal(curve, _run(priority=priority, seed=3))
    other = _run(priority=priority, seed=4)
    assert curve[0].acquired.tolist() != other[0].acquired.tolist()
    assert curve[0].nll != other[0].nll


def test_rows_of_highest_priority_are_acquired_under_the_trained_network():
    forwards = []

    def by_first_input(enn_batch_fwd):
        def priority_fn(params, state, batch, key):
            forwards.append((params["scale"], enn_batch_fwd(params, state, batch.x)))
            return batch.x[:, 0], {}

        return priority_fn

    curve = _run(priority=by_first_input, num_acquisitions=2)
    left = [row for row in np.argsort(X[:, 0]) if row not in curve[0].acquired]
    assert curve[1].acquired.tolist() == left[-3:]
    assert curve[2].acquired.tolist() == left[-6:-3]
    assert [scale for scale, _ in forwards] == [2, 5]
    assert [logits.shape for _, logits in forwards] == [(4, 9, 2), (4, 6, 2)]


def test_points_hold_accuracy_and_nll_of_the_evaluation_data():
    # Whatever the index, the larger input has the larger logit.
    enn = base.EpistemicNetwork(
        lambda params, state, inputs, index: (2 * inputs, state),
        None,
        networks.GaussianIndexer(2),
    )
    point = _run(Recorder(enn), num_acquisitions=1)[-1]
    labels = EVAL.y
    log_probs = scipy.special.log_softmax(2 * EVAL.x, axis=1)
    accuracy = np.mean(EVAL.x.argmax(axis=1) == labels)
    np.testing.assert_allclose(point.accuracy, accuracy, rtol=1e-6)
    nll = -np.mean(log_probs[np.arange(6), labels])
    np.testing.assert_allclose(point.nll, nll, rtol=1e-6)


def test_a_network_that_experiments_share_is_compiled_once_a_shape():
    calls = []

    def apply(*args):
        calls.append(args)
        return _apply(*args)

    enn = base.EpistemicNetwork(apply, None, networks.GaussianIndexer(2))
    networks.make_batch_fwd(enn, 4)({"scale": np.float32(1)}, {}, X)
    calls_a_shape = len(calls)
    calls.clear()
    assert len(_run(Recorder(enn), acquisition_size=3)) == 4
    # 9, 6 and 3 unlabelled rows; the evaluation data are 6 as well.
    assert len(calls) == 3 * calls_a_shape


def test_ids_of_the_pool_are_kept_and_the_pool_is_not_changed():
    extra = {"weight": np.arange(NUM_ROWS)}
    ids = 100 + np.arange(NUM_ROWS)[:, None]
    pool = datasets.ArrayBatch(x=X, y=POOL.y, data_index=ids, extra=extra)
    recorder = Recorder()
    curve = _run(recorder, pool)
    rows = np.concatenate([point.acquired for point in curve])
    np.testing.assert_array_equal(recorder.labelled[-1].data_index[:, 0], 100 + rows)
    np.testing.assert_array_equal(recorder.labelled[-1].extra["weight"], rows)
    assert list(recorder.labelled[-1].extra) == list(extra) == ["weight"]


@pytest.mark.parametrize(
    "name",
    [
        "initial_size",
        "acquisition_size",
        "num_acquisitions",
        "num_batches",
        "num_enn_samples",
    ],
)
@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_sizes_must_be_positive_integers(name, size):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got {size}"):
        _run(**{name: size})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"priority": "badge"}, "priority must be one of 'uniform'.*got 'badge'"),
        ({"priority": 3}, "priority must be one of 'uniform'.*got 3"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"initial_size": 12}, "initial_size must be at most the 11 rows .* got 12"),
        (
            {"pool": datasets.ArrayBatch(x=X[:0], y=POOL.y[:0])},
            r"pool must have rows, got y of shape \(0,\)",
        ),
        (
            {"eval_data": datasets.ArrayBatch(x=X[:0], y=POOL.y[:0])},
            "eval_data must have rows",
        ),
        (
            {"pool": datasets.ArrayBatch(x=X[:3], y=POOL.y)},
            "x must have 11 rows as y has",
        ),
    ],
)
def test_errors_come_before_any_training(kwargs, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        _run(recorder, **kwargs)
    assert not recorder.labelled


@pytest.mark.parametrize("name", ["pool", "eval_data"])
@pytest.mark.parametrize("wrong", [2, -1, 0.5])
def test_labels_that_are_no_classes_show_before_any_training(name, wrong):
    recorder = Recorder()
    data = {"pool": POOL, "eval_data": EVAL}[name]
    labels = np.append(data.y[:-1], wrong)
    message = rf"{name}: labels must be integers in \[0, 2\), got {wrong}"
    with pytest.raises(ValueError, match=message):
        _run(recorder, **{name: data.replace(y=labels)})
    assert not recorder.num_batches


@pytest.mark.slow
def test_labels_may_be_integral_floats():
    curve = _run(eval_data=EVAL.replace(y=EVAL.y.astype(float)))
    _assert_equal(curve, _run())


@pytest.mark.slow
@pytest.mark.strict
def test_learns_more_from_more_labels():
    # Three classes by angle.
    x = normal(90, 2, seed=5)
    y = ((np.arctan2(x[:, 1], x[:, 0]) + np.pi) * 3 / (2 * np.pi)).astype(int) % 3
    pool = datasets.ArrayBatch(x=x[:60], y=y[:60])
    eval_data = datasets.ArrayBatch(x=x[60:], y=y[60:, None])

    def apply(params, state, inputs, index):
        return inputs @ params["w"] + 0.1 * index[None], state

    def init(key, inputs, index):
        return {"w": np.zeros([2, 3], np.float32)}, {}

    enn = base.EpistemicNetwork(apply, init, networks.GaussianIndexer(3))
    loss_fn = losses.average_single_index_loss(losses.XentLoss(3), 2)

    def make_experiment(labelled):
        return supervised.Experiment(
            enn,
            loss_fn,
            optax.adam(3e-2),
            utils.make_batch_iterator(labelled, 16),
            logger=MemoryLogger(),
        )

    curve = active_learning.run(
        make_experiment,
        pool,
        eval_data,
        initial_size=2,
        acquisition_size=58,
        num_acquisitions=2,
        num_batches=100,
        num_enn_samples=9,
        seed=2,
    )
    assert [point.num_labels for point in curve] == [2, 60]
    assert curve[-1].accuracy > 0.85 > curve[0].accuracy
    assert curve[-1].nll < 0.5 < curve[0].nll
