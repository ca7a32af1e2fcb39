import pytest

from enn import metrics
from tests.support import golden
from tests.support.batches import LABELS, LOGITS, normal


@pytest.mark.slow
@pytest.mark.strict
def test_metric_values_are_those_of_the_original():
    ece = metrics.ExpectedCalibrationError(10)
    first = ece(LOGITS[:, :12], LABELS[:12])
    golden.assert_matches(
        "metric_values",
        {
            "nll": metrics.make_nll_marginal_calculator()(LOGITS, LABELS),
            "accuracy": metrics.make_accuracy_calculator()(LOGITS, LABELS),
            "joint": metrics.make_nll_joint_calculator(tau=5)(LOGITS, LABELS),
            "dyadic": metrics.make_nll_polyadic_calculator(10, 2)(LOGITS, LABELS),
            "triadic": metrics.make_nll_polyadic_calculator(7, 3)(LOGITS, LABELS),
            "joint_ll": metrics.calculate_joint_ll(LOGITS, LABELS),
            "ece": ece(LOGITS[:, 12:], LABELS[12:], first).value,
            "lme": metrics.average_sampled_log_likelihood(normal(5, seed=3) - 900.0),
        },
    )
