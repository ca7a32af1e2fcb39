"""Residual networks trained on ImageNet, and epinets on their last layers.

Each entry is a function without arguments that returns the checkpoint.
The epinets' prior functions are drawn from the random stream of the JAX of their time.
"""

import functools

from enn.checkpoints.published import PublishedResNets
from enn.datasets.imagenet import Imagenet
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

resnet_50 = functools.partial(_PUBLISHED.resnet, 50)
resnet_101 = functools.partial(_PUBLISHED.resnet, 101)
resnet_152 = functools.partial(_PUBLISHED.resnet, 152)
resnet_200 = functools.partial(_PUBLISHED.resnet, 200)

resnet_50_final_epinet = functools.partial(_PUBLISHED.final_epinet, 50)
resnet_101_final_epinet = functools.partial(_PUBLISHED.final_epinet, 101)
resnet_152_final_epinet = functools.partial(_PUBLISHED.final_epinet, 152)
resnet_200_final_epinet = functools.partial(_PUBLISHED.final_epinet, 200)
