"""Gaussian last layers: linear in features and index, on any base network."""

from enn.networks.epinet.expose_features import expose_features
from enn.networks.last_layer.gaussian_last_layer import (
    Factor,
    GaussianLastLayer,
    Structure,
    apply_factor,
    factor_from_precision,
    marginal_variance,
)
from enn.networks.last_layer.linear_hyper_head import (
    LinearHyperHead,
    make_linear_hyper_mlp_enn,
)
from enn.networks.last_layer.sngp import (
    RandomFourierFeatures,
    SpectralLinear,
    make_sngp_mlp_enn,
)
from enn.networks.last_layer.vbll import VariationalLastLayer, make_vbll_mlp_enn

__all__ = [
    "Factor",
    "GaussianLastLayer",
    "LinearHyperHead",
    "RandomFourierFeatures",
    "SpectralLinear",
    "Structure",
    "VariationalLastLayer",
    "apply_factor",
    "expose_features",
    "factor_from_precision",
    "make_linear_hyper_mlp_enn",
    "make_sngp_mlp_enn",
    "make_vbll_mlp_enn",
    "marginal_variance",
]


def __dir__() -> list[str]:
    return sorted(__all__)
