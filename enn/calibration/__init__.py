"""Calibration after training, on held-out rows: temperatures and conformal sets."""

from enn.calibration.conformal import (
    ConformalClassifier,
    ConformalInterval,
    aps_scores,
    conformal_quantile,
    cqr_scores,
    make_conformal_classifier,
    make_conformal_interval,
    raps_scores,
    thr_scores,
)
from enn.calibration.temperature import fit_temperature

__all__ = [
    "ConformalClassifier",
    "ConformalInterval",
    "aps_scores",
    "conformal_quantile",
    "cqr_scores",
    "fit_temperature",
    "make_conformal_classifier",
    "make_conformal_interval",
    "raps_scores",
    "thr_scores",
]


def __dir__() -> list[str]:
    return sorted(__all__)
