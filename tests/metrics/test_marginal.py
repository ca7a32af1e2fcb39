import jax
import numpy as np
import pytest

from enn import metrics
from enn.metrics import marginal
from tests.support.batches import (
    LABELS,
    LOGITS,
    SMALL_LABELS,
    SMALL_LOGITS,
    logits_of,
    softmax,
)


@pytest.mark.strict
def test_documented_values():
    nll = metrics.make_nll_marginal_calculator()(SMALL_LOGITS, SMALL_LABELS)
    np.testing.assert_allclose(nll, 1.704835, rtol=1e-5)
    accuracy = metrics.make_accuracy_calculator()(SMALL_LOGITS, SMALL_LABELS)
    np.testing.assert_allclose(accuracy, 0.16666667, rtol=1e-6)


def test_marginal_ll_averages_probabilities_then_takes_the_log():
    probs = softmax(LOGITS).mean(axis=0)[np.arange(24), np.asarray(LABELS)[:, 0]]
    np.testing.assert_allclose(
        marginal.calculate_marginal_ll(LOGITS, LABELS), np.log(probs).mean(), rtol=1e-5
    )


def test_categorical_log_likelihood_sums_over_the_batch():
    probs = np.array([[0.2, 0.8], [0.5, 0.5]])
    value = metrics.categorical_log_likelihood(probs, np.array([[1], [0]]))
    np.testing.assert_allclose(value, np.log(0.8 * 0.5), rtol=1e-6)


def test_accuracy_is_of_the_mean_probability_not_of_the_mean_logit():
    logits = np.array([[[3.0, 0.0]], [[0.0, 1.2]], [[0.0, 1.2]]])
    assert logits.mean(axis=0).argmax() == 0
    assert softmax(logits).mean(axis=0).argmax() == 1
    assert marginal.calculate_accuracy(logits, np.array([[1]])) == 1


@pytest.mark.strict
def test_confident_wrong_prediction_has_finite_nll():
    # Softmax and then log gave infinity from a gap of 88.
    logits = np.array([[[0.0, 200.0]]])
    nll = metrics.make_nll_marginal_calculator()(logits, np.array([[0]]))
    assert float(nll) == 200


def test_marginal_ll_of_large_logits_is_exact():
    logits = np.array([[[1e6, 1e6 + 1]]])
    value = marginal.calculate_marginal_ll(logits, np.array([[1]]))
    np.testing.assert_allclose(value, -np.log1p(np.exp(-1)), rtol=1e-6)


def test_class_of_probability_zero_has_log_likelihood_minus_infinity():
    logits = np.array([[[0.0, -np.inf]]])
    assert marginal.calculate_marginal_ll(logits, np.array([[1]])) == -np.inf
    assert marginal.calculate_marginal_ll(logits, np.array([[0]])) == 0


def test_gradient_of_the_marginal_nll_is_softmax_minus_one_hot():
    logits = logits_of([[0.2, 0.3, 0.5]])
    labels = np.array([[1]])
    grad = jax.grad(metrics.make_nll_marginal_calculator())(logits, labels)
    np.testing.assert_allclose(grad[0, 0], [0.2, -0.7, 0.5], atol=1e-6)


LIKELIHOODS = {
    "categorical": lambda logits, labels: metrics.categorical_log_likelihood(
        jax.nn.softmax(logits[0]), labels
    ),
    "marginal": metrics.make_nll_marginal_calculator(),
    "joint_ll": metrics.calculate_joint_ll,
    "joint": metrics.make_nll_joint_calculator(2),
    "polyadic": metrics.make_nll_polyadic_calculator(3, 2),
}
OTHERS = {
    "accuracy": metrics.make_accuracy_calculator(),
    "brier": metrics.calculate_brier_score,
    "ece": metrics.SingleBatchECE(5),
    "streamed ece": metrics.ExpectedCalibrationError(5),
    "zero-one": metrics.zero_one_loss,
}


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("name", [*LIKELIHOODS, *OTHERS])
def test_label_out_of_range_is_an_error(name, label):
    # They were clamped or wrapped: 2 and -1 both read class 1.
    metric = (LIKELIHOODS | OTHERS)[name]
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 2\)"):
        metric(np.zeros([3, 2, 2]), np.array([[0], [label]]))


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_label_out_of_range_gives_nan_inside_jit(name, label):
    value = jax.jit(LIKELIHOODS[name])(
        np.zeros([3, 2, 2]), np.array([[label], [label]])
    )
    assert np.isnan(value)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_float_labels_are_a_type_error_in_likelihoods(name):
    with pytest.raises(TypeError, match="labels must be integers, got float"):
        LIKELIHOODS[name](np.zeros([3, 2, 2]), np.zeros([2, 1]))


@pytest.mark.parametrize("name", [*LIKELIHOODS, *OTHERS])
def test_labels_are_one_a_row_with_or_without_a_trailing_axis(name):
    metric = (LIKELIHOODS | OTHERS)[name]
    column, row = (metric(SMALL_LOGITS, y) for y in (SMALL_LABELS, SMALL_LABELS[:, 0]))
    jax.tree.map(np.testing.assert_array_equal, row, column)
    for wrong in (SMALL_LABELS.T, SMALL_LABELS[:5, 0]):
        with pytest.raises(ValueError, match=r"labels must have shape \[batch, 1\]"):
            metric(SMALL_LOGITS, wrong)


@pytest.mark.parametrize("name", [*LIKELIHOODS, *OTHERS][1:])
def test_logits_without_a_sample_axis_are_an_error(name):
    metric = (LIKELIHOODS | OTHERS)[name]
    with pytest.raises(ValueError, match="logits must have shape"):
        metric(np.zeros([2, 2]), np.zeros([2, 1], np.int32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_numpy_labels_of_any_integer_type(dtype):
    labels = np.asarray(SMALL_LABELS, dtype)
    for metric in [metrics.make_nll_marginal_calculator(), *OTHERS.values()]:
        got = jax.tree.leaves(metric(np.asarray(SMALL_LOGITS), labels))
        wanted = jax.tree.leaves(metric(SMALL_LOGITS, SMALL_LABELS))
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
