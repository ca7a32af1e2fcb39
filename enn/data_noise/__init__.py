"""Data noise: what each epistemic index sees of the data differently."""

from enn.data_noise.base import DataNoise, DataNoiseBase
from enn.data_noise.bootstrapping import BootstrapNoise
from enn.data_noise.gaussian import GaussianTargetNoise

__all__ = [
    "BootstrapNoise",
    "DataNoise",
    "DataNoiseBase",
    "GaussianTargetNoise",
]


def __dir__() -> list[str]:
    return sorted(__all__)
