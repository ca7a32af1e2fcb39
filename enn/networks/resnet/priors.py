"""Residual networks with one fixed random network as additive prior.

The prior's parameters are part of the trainable tree. No gradient reaches them, but
penalties on all parameters do: `enn.networks.trainable_mask` tells them apart. There is
one prior, whatever the index: these networks do not vary with the index.
"""

from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax

from enn import base
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.indexers import EnsembleIndexer
from enn.networks.inputs import as_images, layer_sizes, to_nhwc
from enn.networks.priors import conv_prior_net
from enn.networks.resnet.base import resnet_model
from enn.networks.resnet.lib import CanonicalResNets, ResNetConfig


class _ResnetWithPrior(EnnArray):
    def __init__(
        self,
        prior_net: Callable[[chex.Array], chex.Array],
        num_classes: int,
        prior_scale: float,
        is_training: bool,
        test_local_stats: bool,
        enable_double_transpose: bool,
        config: ResNetConfig,
    ):
        def forward(inputs: chex.Array, index: base.Index) -> OutputWithPrior:
            del index
            images = as_images(to_nhwc(inputs, enable_double_transpose))
            model = resnet_model(num_classes, False, config)
            out = model(images, is_training, test_local_stats)
            return out._replace(prior=prior_scale * prior_net(images))

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        super().__init__(model.apply, model.init, EnsembleIndexer(1))


class ResnetMlpPrior(_ResnetWithPrior):
    """A residual network with a fixed MLP on the flattened image as its prior.

    net(x) + prior_scale · prior(x) (Osband et al., 2018,
    https://arxiv.org/abs/1806.03335).

    Args:
      num_classes: number of classes.
      prior_scale: factor of the prior.
      hidden_sizes: widths of the prior's hidden layers.
      is_training: whether batch norm uses the statistics of the batch and updates its
        running ones.
      test_local_stats: whether it uses those of the batch outside training too.
      enable_double_transpose: whether a batch on TPU is
        `[height, width, channels, batch]`.
      config: groups of blocks of the residual network.
    """

    def __init__(
        self,
        num_classes: int,
        prior_scale: float = 1.0,
        hidden_sizes: Sequence[int] = (10,),
        is_training: bool = True,
        test_local_stats: bool = False,
        enable_double_transpose: bool = True,
        config: ResNetConfig = CanonicalResNets.RESNET_50.value,
    ):
        sizes = layer_sizes("hidden_sizes", [*hidden_sizes, num_classes])

        def prior_net(inputs: chex.Array) -> jax.Array:
            return hk.nets.MLP(sizes, name="prior")(hk.Flatten()(inputs))

        super().__init__(
            prior_net,
            num_classes,
            prior_scale,
            is_training,
            test_local_stats,
            enable_double_transpose,
            config,
        )


class ResnetCnnPrior(_ResnetWithPrior):
    """A residual network with a fixed small convolutional network as its prior.

    net(x) + prior_scale · prior(x) (Osband et al., 2018,
    https://arxiv.org/abs/1806.03335).

    Args:
      num_classes: number of classes.
      prior_scale: factor of the prior.
      output_channels: channels of the prior's convolutions.
      kernel_sizes: width of their square kernels.
      strides: their strides.
      is_training: whether batch norm uses the statistics of the batch and updates its
        running ones.
      test_local_stats: whether it uses those of the batch outside training too.
      enable_double_transpose: whether a batch on TPU is
        `[height, width, channels, batch]`.
      config: groups of blocks of the residual network.

    Raises:
      ValueError: if the three lists have different lengths.
    """

    def __init__(
        self,
        num_classes: int,
        prior_scale: float = 1.0,
        output_channels: Sequence[int] = (4, 8, 8),
        kernel_sizes: Sequence[int] = (10, 10, 3),
        strides: Sequence[int] = (5, 5, 2),
        is_training: bool = True,
        test_local_stats: bool = False,
        enable_double_transpose: bool = True,
        config: ResNetConfig = CanonicalResNets.RESNET_50.value,
    ):
        prior_net = conv_prior_net(num_classes, output_channels, kernel_sizes, strides)
        super().__init__(
            prior_net,
            num_classes,
            prior_scale,
            is_training,
            test_local_stats,
            enable_double_transpose,
            config,
        )
