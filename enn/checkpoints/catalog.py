"""The published checkpoints, each a member of an Enum of its data set.

Nothing is downloaded before a checkpoint's `load_fn` is called, or a sampler made.
"""

import enum

from enn.checkpoints import cifar10, cifar100, imagenet


class Cifar10Models(enum.Enum):
    """Residual networks trained on CIFAR-10, and epinets on top of them.

    Epinets: Osband et al., 2021, https://arxiv.org/abs/2107.08924.
    """

    RESNET_18 = cifar10.resnet_18()
    RESNET_32 = cifar10.resnet_32()
    RESNET_44 = cifar10.resnet_44()
    RESNET_56 = cifar10.resnet_56()
    RESNET_110 = cifar10.resnet_110()
    RESNET_18_FINAL_EPINET = cifar10.resnet_18_final_epinet()
    RESNET_32_FINAL_EPINET = cifar10.resnet_32_final_epinet()
    RESNET_44_FINAL_EPINET = cifar10.resnet_44_final_epinet()
    RESNET_56_FINAL_EPINET = cifar10.resnet_56_final_epinet()
    RESNET_110_FINAL_EPINET = cifar10.resnet_110_final_epinet()


class Cifar100Models(enum.Enum):
    """Residual networks trained on CIFAR-100, and epinets on top of them.

    Epinets: Osband et al., 2021, https://arxiv.org/abs/2107.08924.
    """

    RESNET_18 = cifar100.resnet_18()
    RESNET_32 = cifar100.resnet_32()
    RESNET_44 = cifar100.resnet_44()
    RESNET_56 = cifar100.resnet_56()
    RESNET_110 = cifar100.resnet_110()
    RESNET_18_FINAL_EPINET = cifar100.resnet_18_final_epinet()
    RESNET_32_FINAL_EPINET = cifar100.resnet_32_final_epinet()
    RESNET_44_FINAL_EPINET = cifar100.resnet_44_final_epinet()
    RESNET_56_FINAL_EPINET = cifar100.resnet_56_final_epinet()
    RESNET_110_FINAL_EPINET = cifar100.resnet_110_final_epinet()


class ImagenetModels(enum.Enum):
    """Residual networks trained on ImageNet, and epinets on top of them.

    Epinets: Osband et al., 2021, https://arxiv.org/abs/2107.08924.
    """

    RESNET_50 = imagenet.resnet_50()
    RESNET_101 = imagenet.resnet_101()
    RESNET_152 = imagenet.resnet_152()
    RESNET_200 = imagenet.resnet_200()
    RESNET_50_FINAL_EPINET = imagenet.resnet_50_final_epinet()
    RESNET_101_FINAL_EPINET = imagenet.resnet_101_final_epinet()
    RESNET_152_FINAL_EPINET = imagenet.resnet_152_final_epinet()
    RESNET_200_FINAL_EPINET = imagenet.resnet_200_final_epinet()
