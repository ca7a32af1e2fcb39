"""Residual networks as Haiku modules."""

from typing import Any, Protocol, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks
from enn.networks.base import OutputWithPrior
from enn.networks.images import as_images
from enn.networks.resnet.blocks import (
    ResBlock,
    ResBlockV1,
    ResBlockV2,
    batch_norm,
    conv,
)
from enn.networks.resnet.config import CanonicalResNets, ResNetConfig

__all__ = [
    "CanonicalResNets",
    "ForwardFn",
    "ResBlock",
    "ResBlockV1",
    "ResBlockV2",
    "ResNet",
    "ResNetConfig",
]


@runtime_checkable
class ForwardFn(Protocol):
    """Forward pass of a network with batch norm, inside a Haiku transform."""

    def __call__(
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> Any:
        """Returns the network's output at `inputs`."""
        ...


class ResNet(hk.Module):
    """A residual network: a stem, groups of blocks, average pooling, a linear layer.

    The linear layer starts at zero. A network of version 'V1' starts with a 3x3
    convolution, for small images; one of version 'V2' with a 7x7 convolution of
    stride 2 and max-pooling, for large ones.

    Args:
      num_classes: number of classes.
      config: groups of blocks, such as `CanonicalResNets.RESNET_50.value`.
      name: name of the module.
      expose_hidden: whether the output carries the activations of every block. They
        take memory wherever the whole output leaves a `jax.jit` or is mapped.

    Raises:
      ValueError: if `num_classes` is no integer >= 1; by a call with inputs that are
        not `[batch, height, width, channels]`.
    """

    def __init__(
        self,
        num_classes: int,
        config: ResNetConfig,
        name: str | None = None,
        expose_hidden: bool = True,
    ):
        super().__init__(name=name)
        _checks.positive_int("num_classes", num_classes)
        self.expose_hidden = expose_hidden
        self.is_resnet_block_v1 = config.resnet_block_version == "V1"
        self.is_resnet_block_v2 = config.resnet_block_version == "V2"
        if self.is_resnet_block_v1:
            self.initial_conv = conv(16, 3, 1, name="initial_conv")
            self.initial_batchnorm = batch_norm("initial_batchnorm")
        else:
            self.initial_conv = conv(64, 7, 2, name="initial_conv")
            self.final_batchnorm = batch_norm("final_batchnorm")
        self.blocks = [
            _make_block(config, channels, stride if i == 0 else 1, first=i == 0)
            for channels, num_blocks, stride in zip(
                config.channels_per_group,
                config.blocks_per_group,
                config.strides_per_group,
                strict=True,
            )
            for i in range(num_blocks)
        ]
        self.final_fc = hk.Linear(num_classes, w_init=jnp.zeros, name="final_fc")

    def __call__(
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> OutputWithPrior:
        """Returns logits `[batch, num_classes]`, a zero prior, and activations.

        Args:
          inputs: images, `[batch, height, width, channels]`.
          is_training: whether batch norm uses the statistics of this batch, and
            updates its running ones.
          test_local_stats: whether it uses those of this batch outside training too.

        Returns:
          Output whose `extra` has the pooled features `final_out`
          `[batch, num_channels]`, and with `expose_hidden` the output `hidden_i`
          `[batch, height, width, channels]` of every block, counted from 0.
        """
        mode = (is_training, test_local_stats)
        out = self.initial_conv(as_images(inputs))
        if self.is_resnet_block_v1:
            out = jax.nn.relu(self.initial_batchnorm(out, *mode))
        else:
            out = hk.max_pool(out, (3, 3, 1), (2, 2, 1), "SAME")
        extra = {}
        for i, block in enumerate(self.blocks):
            out = block(out, *mode)
            if self.expose_hidden:
                extra[f"hidden_{i}"] = out
        if self.is_resnet_block_v2:
            out = jax.nn.relu(self.final_batchnorm(out, *mode))
        extra["final_out"] = jnp.mean(out, axis=(1, 2))
        return OutputWithPrior(self.final_fc(extra["final_out"]), extra=extra)


def _make_block(
    config: ResNetConfig, channels: int, stride: int, first: bool
) -> ResBlock:
    if config.resnet_block_version == "V1":
        return ResBlockV1(channels, stride)
    return ResBlockV2(channels, stride, use_projection=first)
