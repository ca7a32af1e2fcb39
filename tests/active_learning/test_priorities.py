import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import active_learning, datasets
from enn.active_learning import priorities
from tests.support import golden
from tests.support.batches import (
    LABELS,
    LOGITS,
    SMALL_LABELS,
    SMALL_LOGITS,
    constant_forward,
    logits_of,
    normal,
)

NAMES = [
    "uniform",
    "variance",
    "nll",
    "joint_nll",
    "entropy",
    "margin",
    "bald",
    "var_ratios",
    "ucb",
    "scaled_mean",
    "scaled_std",
]
KEY = jax.random.PRNGKey(3)

DOCUMENTED = {
    "uniform": [0.07405257, 0.9381443, 0.648957, 0.975621, 0.27837777, 0.5829381],
    "variance": [
        *(0.15338485, 0.03239816, 0.197682),
        *(0.22677222, 0.29647744, 0.11881246),
    ],
    "nll": [2.4665022, 1.8583709, 1.0028911, 2.3550699, 1.1508473, 1.3953297],
    "joint_nll": [
        *(31.557854, 21.307182, 12.99235),
        *(25.146057, 31.989162, 14.111874),
    ],
    "entropy": [1.2938489, 0.8025208, 1.2594743, 1.2585039, 1.2049358, 1.3212703],
    "margin": [
        *(-0.03323787, -0.59061563, -0.05128559),
        *(-0.09051061, -0.0539448, -0.15102191),
    ],
    "bald": [
        *(0.34093368, 0.08517802, 0.36322546),
        *(0.41371107, 0.54409325, 0.22683346),
    ],
    "var_ratios": [
        *(0.66750556, 0.2534579, 0.6331826),
        *(0.5896239, 0.6296866, 0.60122675),
    ],
    "ucb": [0.580782, 0.25820392, 0.6380062, 0.7981258, 0.4959445, 0.28989595],
    "scaled_mean": [
        *(0.29925656, 0.15592644, 0.31553182),
        *(0.41037604, 0.27847612, 0.24775134),
    ],
    "scaled_std": [
        *(0.28152543, 0.1022775, 0.32247436),
        *(0.38774976, 0.2174684, 0.04214462),
    ],
}


def _score(name, logits, labels, key=KEY):
    return active_learning.get_per_example_priority(name)(logits, labels, key)


@pytest.mark.strict
@pytest.mark.parametrize("name", NAMES)
def test_documented_values(name):
    scores = _score(name, SMALL_LOGITS, SMALL_LABELS)
    np.testing.assert_allclose(scores, DOCUMENTED[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.strict
def test_golden_priorities_and_selection():
    key = golden.keys(8)
    report = {name: _score(name, LOGITS, LABELS, key) for name in NAMES}
    ucb = active_learning.make_ucb_per_example(2.0, np.array([0.0, 1.0, 2.0, 3.0]))
    batcher = active_learning.PrioritizedBatcher(
        constant_forward(LOGITS),
        acquisition_size=5,
        priority_fn_ctor=active_learning.get_priority_fn_ctor("bald"),
    )
    pool = datasets.ArrayBatch(x=normal(24, 5, seed=2), y=LABELS)
    picked = batcher.sample_batch({}, {}, pool, golden.keys(2))
    report["ucb_values"] = ucb(LOGITS, LABELS, key)
    report["picked"] = {"x": picked.x, "y": picked.y}
    golden.assert_matches("active_learning_priorities", report)


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_one_a_row_with_or_without_a_trailing_axis(name):
    scores = [_score(name, SMALL_LOGITS, y) for y in (SMALL_LABELS, SMALL_LABELS[:, 0])]
    np.testing.assert_array_equal(*scores)


def test_registries_list_names_in_order():
    assert active_learning.get_implemented_priority_fn_ctors() == NAMES
    assert priorities.get_implemented_per_example_priorities() == NAMES


@pytest.mark.parametrize(
    "get",
    [active_learning.get_per_example_priority, active_learning.get_priority_fn_ctor],
)
def test_unknown_name_is_an_error_that_lists_the_names(get):
    with pytest.raises(ValueError, match=r"'uniform', 'variance'.*got 'badge'"):
        get("badge")


@pytest.mark.strict
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("name", NAMES)
def test_one_row_has_one_score_also_under_jit(name, make_key):
    # Uniform scores of one row were a scalar.
    score = jax.jit(active_learning.get_per_example_priority(name))
    scores = score(SMALL_LOGITS[:, :1], SMALL_LABELS[:1], make_key(0))
    assert scores.shape == (1,)
    assert scores.dtype == jnp.float32


# Rows: certain, and torn between two members.
CERTAIN_AND_TORN = np.array(
    [[[100, -100], [100, -100]], [[100, -100], [-100, 100]]], np.float32
)


@pytest.mark.strict
@pytest.mark.parametrize("name", ["entropy", "bald", "var_ratios", "margin"])
def test_certain_rows_are_finite_and_the_least_wanted(name):
    # Entropy and BALD were NaN for the certain row, which was then chosen first.
    scores = _score(name, CERTAIN_AND_TORN, np.zeros([2, 1], np.int32))
    certain, torn = np.asarray(scores)
    expected = {"entropy": np.log(2), "bald": np.log(2), "var_ratios": 0.5, "margin": 1}
    np.testing.assert_allclose(torn - certain, expected[name], rtol=1e-6)
    least = -1 if name == "margin" else 0
    np.testing.assert_allclose(certain, least, atol=1e-30)


@pytest.mark.strict
def test_likelihoods_of_impossible_labels_are_finite():
    # Softmax and then log gave infinity.
    labels = np.ones([2, 1], np.int32)
    nll = _score("nll", CERTAIN_AND_TORN, labels)
    np.testing.assert_allclose(nll, [200, np.log(2)], rtol=1e-6)
    joint = _score("joint_nll", CERTAIN_AND_TORN, labels)
    np.testing.assert_allclose(joint, [2000, 1000])


def test_joint_nll_averages_log_likelihoods():
    # The joint likelihood of ten repeats would give 1.7468.
    logits = np.concatenate([logits_of([[p, 1 - p]]) for p in (0.9, 0.1)])
    score = _score("joint_nll", logits, np.array([[0]]))
    np.testing.assert_allclose(score, [-5 * np.log(0.9 * 0.1)], rtol=1e-6)


@pytest.mark.parametrize("name", ["nll", "joint_nll"])
def test_likelihoods_cast_labels_and_check_their_range(name):
    as_floats = _score(name, SMALL_LOGITS, SMALL_LABELS.astype(np.float32))
    np.testing.assert_array_equal(as_floats, _score(name, SMALL_LOGITS, SMALL_LABELS))
    labels = SMALL_LABELS.copy()
    labels[2] = -1
    with pytest.raises(ValueError, match=r"integers in \[0, 4\), got -1"):
        _score(name, SMALL_LOGITS, labels)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"nll", "joint_nll"}))
def test_other_priorities_do_not_look_at_labels(name):
    np.testing.assert_array_equal(
        _score(name, SMALL_LOGITS, np.full([6, 1], -1, np.int32)),
        _score(name, SMALL_LOGITS, SMALL_LABELS),
    )


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize("name", sorted({*NAMES} - {"uniform"}))
def test_masked_classes_count_for_nothing(name):
    masked = np.full([9, 6, 2], -np.inf, np.float32)
    logits = np.concatenate([SMALL_LOGITS[:3], masked[:3]], axis=-1)
    scores = _score(name, logits, SMALL_LABELS)
    expected = _score(name, SMALL_LOGITS[:3], SMALL_LABELS)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"uniform"}))
def test_logits_of_nan_have_no_priority(name):
    logits = SMALL_LOGITS.copy()
    logits[1, 2, 3] = np.nan
    score = jax.jit(active_learning.get_per_example_priority(name))
    nan = np.isnan(score(logits, SMALL_LABELS, KEY))
    np.testing.assert_array_equal(nan, np.arange(6) == 2)


def test_margin_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="margin needs at least 2 classes, got 1"):
        _score("margin", np.zeros([3, 2, 1]), np.zeros([2, 1], np.int32))


def test_class_values_weigh_the_classes():
    logits = np.concatenate([logits_of([[0.5, 0.5]]), logits_of([[0.9, 0.1]])])
    labels, values = np.zeros([1, 1]), [2.0, 10.0]
    expected = np.array([0.5 * 2 + 0.5 * 10, 0.9 * 2 + 0.1 * 10])
    mean, std = expected.mean(), expected.std()
    for make, wanted in [
        (active_learning.make_scaled_mean_per_example(np.array(values)), mean),
        (active_learning.make_scaled_std_per_example(jnp.array(values)), std),
        (active_learning.make_ucb_per_example(3.0, jnp.array(values)), mean + 3 * std),
    ]:
        np.testing.assert_allclose(make(logits, labels, KEY), [wanted], rtol=1e-5)


def test_class_values_of_a_wrong_shape_are_an_error():
    ucb = active_learning.make_ucb_per_example(class_values=np.ones(3))
    with pytest.raises(ValueError, match=r"class_values must have shape"):
        ucb(SMALL_LOGITS, SMALL_LABELS, KEY)


def test_priority_fn_passes_predictions_labels_and_key():
    calls = []

    def per_example(logits, labels, key):
        calls.append((logits, labels, key))
        return labels[:, 0]

    def batch_fwd(params, state, x):
        return params * x + state

    priority_fn = active_learning.make_priority_fn_ctor(per_example)(batch_fwd)
    key = jax.random.key(1)
    for y in (np.arange(3), np.arange(3)[:, None]):
        batch = datasets.ArrayBatch(x=np.ones(3), y=y)
        scores, found = priority_fn(2, 1, batch, key)
        np.testing.assert_array_equal(scores, [0, 1, 2])
        assert found == {}
        logits, labels, passed_key = calls.pop()
        np.testing.assert_array_equal(logits, [3, 3, 3])
        assert labels.shape == (3, 1)
        assert passed_key is key
