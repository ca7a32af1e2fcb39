"""Metrics of marginal and joint predictions, calibration and uncertainty."""

from enn.metrics.base import (
    AggregateMetricCalculator,
    MetricCalculator,
    MetricsState,
    PerExampleMetric,
    average_sampled_log_likelihood,
    make_average_aggregator,
    make_sum_aggregator,
)
from enn.metrics.calibration import (
    ExpectedCalibrationError,
    ReliabilityDiagram,
    SingleBatchECE,
    reliability_diagram,
)
from enn.metrics.frames import predictions_frame
from enn.metrics.histogram import (
    ScoreHistogram,
    binned_histogram,
    exact_histogram,
)
from enn.metrics.joint import (
    calculate_joint_ll,
    make_nll_joint_calculator,
    make_nll_polyadic_calculator,
)
from enn.metrics.marginal import (
    categorical_log_likelihood,
    make_accuracy_calculator,
    make_nll_marginal_calculator,
)
from enn.metrics.mixture import (
    CalibrationCurve,
    calculate_mixture_cdf,
    calculate_mixture_quantiles,
    calibration_curve,
    make_calibration_aggregator,
    make_constant_std,
    make_coverage_calculator,
    make_interval_width_calculator,
    make_mixture_crps_calculator,
    make_mixture_nll_calculator,
    make_mixture_nll_joint_calculator,
    split_mean_and_std,
)
from enn.metrics.ood import (
    calculate_aupr,
    calculate_auroc,
    make_aupr_aggregator,
    make_auroc_aggregator,
)
from enn.metrics.regression import (
    calculate_crps,
    calculate_gaussian_joint_ll,
    make_gaussian_nll_calculator,
    make_gaussian_nll_joint_calculator,
)
from enn.metrics.scoring import calculate_brier_score
from enn.metrics.selective import (
    RiskCoverageCurve,
    calculate_aurc,
    make_aurc_aggregator,
    risk_coverage_curve,
    zero_one_loss,
)
from enn.metrics.uncertainty import (
    mutual_information,
    predictive_entropy,
    variation_ratio,
)

__all__ = [
    "AggregateMetricCalculator",
    "CalibrationCurve",
    "ExpectedCalibrationError",
    "MetricCalculator",
    "MetricsState",
    "PerExampleMetric",
    "ReliabilityDiagram",
    "RiskCoverageCurve",
    "ScoreHistogram",
    "SingleBatchECE",
    "average_sampled_log_likelihood",
    "binned_histogram",
    "calculate_aupr",
    "calculate_aurc",
    "calculate_auroc",
    "calculate_brier_score",
    "calculate_crps",
    "calculate_gaussian_joint_ll",
    "calculate_joint_ll",
    "calculate_mixture_cdf",
    "calculate_mixture_quantiles",
    "calibration_curve",
    "categorical_log_likelihood",
    "exact_histogram",
    "make_accuracy_calculator",
    "make_aupr_aggregator",
    "make_aurc_aggregator",
    "make_auroc_aggregator",
    "make_average_aggregator",
    "make_calibration_aggregator",
    "make_constant_std",
    "make_coverage_calculator",
    "make_gaussian_nll_calculator",
    "make_gaussian_nll_joint_calculator",
    "make_interval_width_calculator",
    "make_mixture_crps_calculator",
    "make_mixture_nll_calculator",
    "make_mixture_nll_joint_calculator",
    "make_nll_joint_calculator",
    "make_nll_marginal_calculator",
    "make_nll_polyadic_calculator",
    "make_sum_aggregator",
    "mutual_information",
    "predictions_frame",
    "predictive_entropy",
    "reliability_diagram",
    "risk_coverage_curve",
    "split_mean_and_std",
    "variation_ratio",
    "zero_one_loss",
]


def __dir__() -> list[str]:
    return sorted(__all__)
