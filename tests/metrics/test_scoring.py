import numpy as np
import pytest

from enn import metrics
from tests.support.batches import LABELS, LOGITS, logits_of, softmax


@pytest.mark.parametrize(
    ("probs", "expected"),
    [([0.0, 1.0], 2.0), ([1.0, 0.0], 0.0), ([0.5, 0.5], 0.5), ([0.7, 0.3], 0.18)],
)
def test_brier_score_of_one_row(probs, expected):
    value = metrics.calculate_brier_score(logits_of([probs]), np.array([[0]]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.strict
def test_brier_score_is_of_the_marginal_prediction():
    targets = np.eye(4)[np.asarray(LABELS)[:, 0]]
    errors = softmax(LOGITS).mean(axis=0) - targets
    np.testing.assert_allclose(
        metrics.calculate_brier_score(LOGITS, LABELS),
        np.mean(np.sum(errors**2, axis=1)),
        rtol=1e-5,
    )
