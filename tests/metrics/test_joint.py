import jax
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import metrics
from enn.metrics import joint
from tests.support.batches import (
    LABELS,
    LOGITS,
    SMALL_LABELS,
    SMALL_LOGITS,
    logits_of,
    softmax,
)


def _log_probs(logits, labels):
    """`[num_enn_samples, batch]` in double precision."""
    labels = np.asarray(labels)[:, 0]
    return np.log(softmax(logits))[:, np.arange(len(labels)), labels]


def _log_mean_exp(x):
    return scipy.special.logsumexp(x) - np.log(len(x))


@pytest.mark.strict
@pytest.mark.parametrize(
    ("tau", "kappa", "expected"),
    [(10, 2, 14.760057), (5, 3, 6.092106), (4, 1, 5.2600155)],
)
def test_documented_polyadic_values(tau, kappa, expected):
    metric = metrics.make_nll_polyadic_calculator(tau, kappa)
    np.testing.assert_allclose(metric(SMALL_LOGITS, SMALL_LABELS), expected, rtol=1e-5)


@pytest.mark.strict
def test_documented_joint_values():
    joint_nll = metrics.make_nll_joint_calculator(3)(SMALL_LOGITS, SMALL_LABELS)
    np.testing.assert_allclose(joint_nll, 4.978503, rtol=1e-5)
    joint_ll = metrics.calculate_joint_ll(SMALL_LOGITS, SMALL_LABELS)
    np.testing.assert_allclose(joint_ll, -12.1870165, rtol=1e-5)


def test_defaults_are_ten_rows_from_two_anchors():
    ten = metrics.make_nll_joint_calculator(10)(LOGITS, LABELS)
    assert metrics.make_nll_joint_calculator()(LOGITS, LABELS) == ten
    dyadic = metrics.make_nll_polyadic_calculator()
    np.testing.assert_allclose(dyadic(SMALL_LOGITS, SMALL_LABELS), 14.760057, rtol=1e-5)


def test_joint_ll_is_of_products_within_each_sample():
    # Two members, each certain of one labelling; independence would give 1/4.
    certain = np.array([[[50.0, 0.0]] * 2, [[0.0, 50.0]] * 2])
    same, mixed = np.array([[0], [0]]), np.array([[0], [1]])
    joint_ll = metrics.calculate_joint_ll(certain, same)
    np.testing.assert_allclose(joint_ll, np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(metrics.calculate_joint_ll(certain, mixed), -50)


@pytest.mark.parametrize("tau", [5, 24])
def test_joint_nll_is_the_mean_over_groups_in_order_without_the_remainder(tau):
    log_probs = _log_probs(LOGITS, LABELS)
    starts = range(0, 24 - tau + 1, tau)
    groups = [log_probs[:, start : start + tau].sum(axis=1) for start in starts]
    np.testing.assert_allclose(
        metrics.make_nll_joint_calculator(tau)(LOGITS, LABELS),
        -np.mean([_log_mean_exp(group) for group in groups]),
        rtol=1e-5,
    )


def test_joint_nll_of_one_row_is_the_marginal_nll():
    np.testing.assert_allclose(
        metrics.make_nll_joint_calculator(1)(LOGITS, LABELS),
        metrics.make_nll_marginal_calculator()(LOGITS, LABELS),
        rtol=1e-6,
    )


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(9)))
def test_joint_metrics_do_not_depend_on_the_order_of_samples(order):
    for metric in [
        metrics.make_nll_joint_calculator(5),
        metrics.make_nll_polyadic_calculator(5, 2),
    ]:
        np.testing.assert_allclose(
            metric(LOGITS[np.array(order)], LABELS), metric(LOGITS, LABELS), rtol=1e-5
        )


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)])
@pytest.mark.parametrize(("tau", "kappa"), [(10, 2), (7, 5)])
def test_polyadic_nll_draws_rows_of_each_group(tau, kappa, key):
    num_groups = 24 // kappa
    log_probs = _log_probs(LOGITS, LABELS)
    terms = []
    for group, group_key in enumerate(jax.random.split(key, num_groups)):
        drawn = np.asarray(jax.random.randint(group_key, [tau], 0, kappa, np.int32))
        terms.append(-_log_mean_exp(log_probs[:, group * kappa + drawn].sum(axis=1)))
    np.testing.assert_allclose(
        metrics.make_nll_polyadic_calculator(tau, kappa, key=key)(LOGITS, LABELS),
        np.mean(terms),
        rtol=1e-5,
    )


@pytest.mark.strict
@pytest.mark.parametrize("num_classes", [2, 1000])
def test_polyadic_seed_is_the_label_sum_modulo_two_to_the_32(num_classes):
    labels = np.random.default_rng(1).integers(num_classes, size=(100, 1))
    seed = sum(
        int(y) * b * 10 * int(labels.max()) for b, y in enumerate(labels.ravel())
    )
    assert (seed >= 2**31) == (num_classes == 1000)
    key = jax.random.PRNGKey(np.uint32(seed % 2**32).astype(np.int32))
    logits = jax.random.normal(jax.random.PRNGKey(0), [3, 100, 1000])
    expected = metrics.make_nll_polyadic_calculator(6, 4, key=key)(logits, labels)
    got = metrics.make_nll_polyadic_calculator(6, 4)(logits, labels)
    assert float(got) == float(expected)
    other = metrics.make_nll_polyadic_calculator(6, 4, key=jax.random.PRNGKey(5))
    assert float(other(logits, labels)) != float(expected)


def test_permuting_groups_changes_draws_from_labels_but_with_a_key_only_the_terms():
    order = np.array([2, 3, 0, 1, 4, 5])
    by_labels = metrics.make_nll_polyadic_calculator(10, 2)
    value = by_labels(SMALL_LOGITS[:, order], SMALL_LABELS[order])
    np.testing.assert_allclose(value, 14.321, atol=1e-3)
    # One anchor leaves nothing to draw.
    keyed = metrics.make_nll_polyadic_calculator(10, 1, key=jax.random.key(0))
    order = np.array([5, 1, 0, 3, 2, 4])
    np.testing.assert_allclose(
        keyed(SMALL_LOGITS[:, order], SMALL_LABELS[order]),
        keyed(SMALL_LOGITS, SMALL_LABELS),
        rtol=1e-6,
    )


@pytest.mark.strict
def test_confident_wrong_predictions_have_finite_joint_nll():
    # Softmax and then log gave infinity from a gap of 88.
    logits = np.tile(np.array([0.0, 200.0]), [2, 4, 1])
    labels = np.zeros([4, 1], np.int32)
    assert metrics.calculate_joint_ll(logits, labels) == -800
    assert metrics.make_nll_joint_calculator(2)(logits, labels) == 400
    assert metrics.make_nll_polyadic_calculator(10, 2)(logits, labels) == 2000


def test_reshape_to_smaller_batches_keeps_rows_in_order():
    logits = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    labels = np.arange(7)[:, None]
    small_logits, small_labels = joint.reshape_to_smaller_batches(logits, labels, 3)
    assert small_logits.shape == (2, 2, 3, 3)
    assert small_labels.shape == (2, 3, 1)
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        np.testing.assert_array_equal(small_logits[group], logits[:, rows])
        np.testing.assert_array_equal(small_labels[group], labels[rows])


@pytest.mark.parametrize(
    "metric",
    [
        metrics.make_nll_joint_calculator(7),
        metrics.make_nll_polyadic_calculator(2, 7),
        lambda logits, labels: joint.reshape_to_smaller_batches(logits, labels, 7),
    ],
)
def test_too_few_rows_are_an_error(metric):
    with pytest.raises(ValueError, match="at least 7 rows, got 6"):
        metric(SMALL_LOGITS, SMALL_LABELS)


@pytest.mark.parametrize("wrong", [0, -1, 2.5])
def test_sizes_must_be_positive_integers(wrong):
    with pytest.raises(ValueError, match="tau must be an integer >= 1"):
        metrics.make_nll_joint_calculator(wrong)
    with pytest.raises(ValueError, match="tau must be an integer >= 1"):
        metrics.make_nll_polyadic_calculator(tau=wrong)
    with pytest.raises(ValueError, match="kappa must be an integer >= 1"):
        metrics.make_nll_polyadic_calculator(kappa=wrong)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        joint.reshape_to_smaller_batches(LOGITS, LABELS, wrong)


def test_polyadic_nll_of_identical_anchors_is_that_of_repeats():
    # One row, seen tau times: log-mean over members of p^tau, 1.7468 for .9 and .1.
    logits = np.concatenate([logits_of([[p, 1 - p]] * 2) for p in (0.9, 0.1)])
    labels = np.zeros([2, 1], np.int32)
    value = metrics.make_nll_polyadic_calculator(10, 2)(logits, labels)
    np.testing.assert_allclose(value, 1.7468, atol=1e-4)
