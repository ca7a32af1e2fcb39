"""Residual networks trained on CIFAR-10, and epinets on their last layers.

Each entry is a function without arguments that returns the checkpoint.
The epinets' prior functions are drawn from the random stream of the JAX of their time.
"""

import functools

from enn.checkpoints.published import PublishedResNets
from enn.datasets.cifar import Cifar10
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

resnet_18 = functools.partial(_PUBLISHED.resnet, 18)
resnet_32 = functools.partial(_PUBLISHED.resnet, 32)
resnet_44 = functools.partial(_PUBLISHED.resnet, 44)
resnet_56 = functools.partial(_PUBLISHED.resnet, 56)
resnet_110 = functools.partial(_PUBLISHED.resnet, 110)

resnet_18_final_epinet = functools.partial(_PUBLISHED.final_epinet, 18)
resnet_32_final_epinet = functools.partial(_PUBLISHED.final_epinet, 32)
resnet_44_final_epinet = functools.partial(_PUBLISHED.final_epinet, 44)
resnet_56_final_epinet = functools.partial(_PUBLISHED.final_epinet, 56)
resnet_110_final_epinet = functools.partial(_PUBLISHED.final_epinet, 110)
