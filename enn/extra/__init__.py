"""Clustering and compression of data: k-means and variational autoencoders."""

from enn.extra.kmeans import KMeansCluster, KMeansOutput
from enn.extra.vae import (
    MeanLogVariance,
    MLPVAEConfig,
    TrainedVAE,
    get_mlp_vae_encoder_decoder,
)

__all__ = [
    "KMeansCluster",
    "KMeansOutput",
    "MLPVAEConfig",
    "MeanLogVariance",
    "TrainedVAE",
    "get_mlp_vae_encoder_decoder",
]


def __dir__() -> list[str]:
    return sorted(__all__)
