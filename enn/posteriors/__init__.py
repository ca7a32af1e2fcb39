"""Posterior approximations, each as an epistemic network: one index, one function."""

from enn.posteriors.base import Posterior
from enn.posteriors.laplace import fit_laplace
from enn.posteriors.linearised_laplace import fit_linearised_laplace
from enn.posteriors.sgmcmc import (
    LangevinState,
    Preconditioner,
    gaussian_prior_scale,
    rmsprop_preconditioner,
    sghmc,
    sgld,
)
from enn.posteriors.tracking import get_samples, track_samples

__all__ = [
    "LangevinState",
    "Posterior",
    "Preconditioner",
    "fit_laplace",
    "fit_linearised_laplace",
    "gaussian_prior_scale",
    "get_samples",
    "rmsprop_preconditioner",
    "sghmc",
    "sgld",
    "track_samples",
]
