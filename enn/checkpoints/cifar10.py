"""Residual networks and epinets trained on CIFAR-10.

The epinets' prior functions are drawn from the random stream of the JAX of their time.
"""

import functools

from enn.checkpoints.published import PublishedResNets
from enn.datasets.cifar import Cifar10
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.checkpoint import EpinetCheckpoint
from enn.networks.epinet.priors import make_cifar_conv_prior

_PUBLISHED = PublishedResNets(
    name="cifar10",
    make_dataset=Cifar10,
    enable_double_transpose=False,
    index_dim=20,
    epi_prior_scale=4.0,
    add_prior_scale=0.0,
    prior_fn_ctor=functools.partial(
        make_cifar_conv_prior, num_ensemble=20, num_classes=10, legacy_stream=True
    ),
)


def resnet_18() -> EnnCheckpoint:
    """Returns a ResNet-18 trained on CIFAR-10."""
    return _PUBLISHED.resnet(18)


def resnet_32() -> EnnCheckpoint:
    """Returns a ResNet-32 trained on CIFAR-10."""
    return _PUBLISHED.resnet(32)


def resnet_44() -> EnnCheckpoint:
    """Returns a ResNet-44 trained on CIFAR-10."""
    return _PUBLISHED.resnet(44)


def resnet_56() -> EnnCheckpoint:
    """Returns a ResNet-56 trained on CIFAR-10."""
    return _PUBLISHED.resnet(56)


def resnet_110() -> EnnCheckpoint:
    """Returns a ResNet-110 trained on CIFAR-10."""
    return _PUBLISHED.resnet(110)


def resnet_18_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_18`."""
    return _PUBLISHED.final_epinet(18)


def resnet_32_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_32`."""
    return _PUBLISHED.final_epinet(32)


def resnet_44_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_44`."""
    return _PUBLISHED.final_epinet(44)


def resnet_56_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_56`."""
    return _PUBLISHED.final_epinet(56)


def resnet_110_final_epinet() -> EpinetCheckpoint:
    """Returns an epinet on the last layer of `resnet_110`."""
    return _PUBLISHED.final_epinet(110)
