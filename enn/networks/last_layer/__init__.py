"""Gaussian last layers: linear in features and index, on any base network."""

from enn.networks.last_layer.expose_features import expose_features
from enn.networks.last_layer.gaussian_last_layer import (
    Factor,
    GaussianLastLayer,
    Structure,
    apply_factor,
    factor_from_precision,
    marginal_variance,
)

__all__ = [
    "Factor",
    "GaussianLastLayer",
    "Structure",
    "apply_factor",
    "expose_features",
    "factor_from_precision",
    "marginal_variance",
]
