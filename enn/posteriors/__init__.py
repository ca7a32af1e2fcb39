"""Posterior approximations, each as an epistemic network: one index, one function."""

from enn.posteriors.base import Posterior
from enn.posteriors.laplace import fit_laplace
from enn.posteriors.linearised_laplace import fit_linearised_laplace

__all__ = ["Posterior", "fit_laplace", "fit_linearised_laplace"]
