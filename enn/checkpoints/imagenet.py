"""Residual networks and epinets trained on ImageNet.

The epinets' prior functions are drawn from the random stream of the JAX of their time.
"""

import functools

from enn.checkpoints.published import PublishedResNets
from enn.datasets.imagenet import Imagenet
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.checkpoint import EpinetCheckpoint
from enn.networks.epinet.priors import make_imagenet_conv_prior

_PUBLISHED = PublishedResNets(
    name="imagenet",
    make_dataset=Imagenet,
    enable_double_transpose=True,
    index_dim=30,
    epi_prior_scale=1.0,
    add_prior_scale=1.0,
    prior_fn_ctor=functools.partial(
        make_imagenet_conv_prior, num_ensemble=30, legacy_stream=True
    ),
    temperature=0.8,
    epinet_temperature=0.7,
)


def resnet_50() -> EnnCheckpoint:
    """Returns a ResNet-50 trained on ImageNet."""
    return _PUBLISHED.resnet(50)


def resnet_101() -> EnnCheckpoint:
    """Returns a ResNet-101 trained on ImageNet."""
    return _PUBLISHED.resnet(101)


def resnet_152() -> EnnCheckpoint:
    """Returns a ResNet-152 trained on ImageNet."""
    return _PUBLISHED.resnet(152)


def resnet_200() -> EnnCheckpoint:
    """Returns a ResNet-200 trained on ImageNet."""
    return _PUBLISHED.resnet(200)


def resnet_50_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_50`."""
    return _PUBLISHED.final_epinet(50)


def resnet_101_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_101`."""
    return _PUBLISHED.final_epinet(101)


def resnet_152_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_152`."""
    return _PUBLISHED.final_epinet(152)


def resnet_200_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_200`."""
    return _PUBLISHED.final_epinet(200)
