"""Residual networks as epistemic networks."""

import functools

import chex
import haiku as hk

from enn.networks.base import OutputWithPrior
from enn.networks.ensembles import EnsembleWithState
from enn.networks.inputs import to_nhwc
from enn.networks.resnet.lib import CanonicalResNets, ForwardFn, ResNet, ResNetConfig


def resnet_model(
    num_output_classes: int,
    enable_double_transpose: bool = True,
    config: ResNetConfig = CanonicalResNets.RESNET_50.value,
    expose_hidden: bool = True,
) -> ForwardFn:
    """Returns the forward pass of a residual network, for use in a Haiku transform.

    Args:
      num_output_classes: number of classes.
      enable_double_transpose: see `enn.networks.inputs.to_nhwc`.
      config: groups of blocks.
      expose_hidden: whether the output carries the activations of every block.
    """

    @functools.cache
    def net() -> ResNet:
        return ResNet(num_output_classes, config, expose_hidden=expose_hidden)

    def forward(
        inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> OutputWithPrior:
        images = to_nhwc(inputs, enable_double_transpose)
        return net()(images, is_training, test_local_stats)

    return forward


class EnsembleResNetENN(EnsembleWithState):
    """An ensemble of residual networks: the index picks a member.

    f(x, k) = f_{θ_k}(x), as a deep ensemble (Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474).

    Training and evaluation are two objects with the same parameters and state: one
    with `is_training`, one without.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> config = networks.ResNetConfig([16], [1], [1], "V1")
    >>> enn = networks.EnsembleResNetENN(10, num_ensemble=3, config=config)
    >>> x = np.ones([2, 8, 8, 3])
    >>> params, state = jax.eval_shape(enn.init, jax.random.key(0), x, 0)
    >>> {leaf.shape[0] for leaf in jax.tree.leaves((params, state))}  # Members
    {3}

    Args:
      num_output_classes: number of classes.
      num_ensemble: number of members.
      is_training: whether batch norm uses the statistics of the batch and updates its
        running ones.
      test_local_stats: whether it uses those of the batch outside training too.
      enable_double_transpose: whether a batch on TPU is
        `[height, width, channels, batch]`, see `enn.networks.inputs.to_nhwc`.
      config: groups of blocks.
      expose_hidden: whether the output carries the activations of every block, see
        `ResNet`.
    """

    def __init__(
        self,
        num_output_classes: int,
        num_ensemble: int = 1,
        is_training: bool = True,
        test_local_stats: bool = False,
        enable_double_transpose: bool = True,
        config: ResNetConfig = CanonicalResNets.RESNET_50.value,
        expose_hidden: bool = True,
    ):
        def forward(inputs: chex.Array) -> OutputWithPrior:
            model = resnet_model(
                num_output_classes, enable_double_transpose, config, expose_hidden
            )
            return model(inputs, is_training, test_local_stats)

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        super().__init__(model, num_ensemble)
