"""Epinets: networks that add uncertainty to a base network at small cost."""

from enn.networks.epinet.add_epinet import add_epinet
from enn.networks.epinet.base import (
    BaseHiddenParser,
    EpinetApplyWithState,
    EpinetInitWithState,
    EpinetWithState,
    combine_base_epinet_as_enn,
)
from enn.networks.epinet.last_layer import MLPEpinetWithPrior, parse_base_hidden
from enn.networks.epinet.mlp import make_mlp_epinet
from enn.networks.epinet.priors import (
    combine_epinet_and_prior,
    make_cifar_conv_prior,
    make_imagenet_conv_prior,
    make_imagenet_mlp_prior,
)
from enn.networks.epinet.resnet import (
    ResnetFinalEpinet,
    ResnetFinalEpinetConfig,
    make_checkpoint_from_config,
)

__all__ = [
    "BaseHiddenParser",
    "EpinetApplyWithState",
    "EpinetInitWithState",
    "EpinetWithState",
    "MLPEpinetWithPrior",
    "ResnetFinalEpinet",
    "ResnetFinalEpinetConfig",
    "add_epinet",
    "combine_base_epinet_as_enn",
    "combine_epinet_and_prior",
    "make_checkpoint_from_config",
    "make_cifar_conv_prior",
    "make_imagenet_conv_prior",
    "make_imagenet_mlp_prior",
    "make_mlp_epinet",
    "parse_base_hidden",
]


def __dir__() -> list[str]:
    return sorted(__all__)
