"""Posterior approximations, each as an epistemic network: one index, one function."""

from enn.posteriors.base import Posterior
from enn.posteriors.laplace import fit_laplace
from enn.posteriors.linearised_laplace import fit_linearised_laplace
from enn.posteriors.network_state import recompute_state
from enn.posteriors.sgmcmc import (
    LangevinState,
    Preconditioner,
    gaussian_prior_scale,
    rmsprop_preconditioner,
    sghmc,
    sgld,
)
from enn.posteriors.swag import (
    Moments,
    draw_swag_samples,
    get_moments,
    track_moments,
)
from enn.posteriors.tracking import get_samples, track_samples

__all__ = [
    "LangevinState",
    "Moments",
    "Posterior",
    "Preconditioner",
    "draw_swag_samples",
    "fit_laplace",
    "fit_linearised_laplace",
    "gaussian_prior_scale",
    "get_moments",
    "get_samples",
    "recompute_state",
    "rmsprop_preconditioner",
    "sghmc",
    "sgld",
    "track_moments",
    "track_samples",
]


def __dir__() -> list[str]:
    return sorted(__all__)
