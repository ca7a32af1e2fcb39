"""Residual blocks: two 3x3 convolutions, or a pre-activated bottleneck."""

import abc

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks
from enn.networks.batch_norm import BatchNorm


def conv(output_channels: int, kernel_shape: int, stride: int, name: str) -> hk.Conv2D:
    """Returns a convolution with `SAME` padding and no bias."""
    return hk.Conv2D(
        output_channels, kernel_shape, stride=stride, with_bias=False, name=name
    )


def batch_norm(name: str) -> BatchNorm:
    """Returns a batch norm with scale, offset and decay 0.9."""
    return BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, name=name)


class ResBlock(abc.ABC, hk.Module):
    """A residual block."""

    @abc.abstractmethod
    def __call__(
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> chex.Array:
        """Returns the block's output, `[batch, height, width, channels]`.

        Args:
          inputs: `[batch, height, width, channels]`.
          is_training: whether batch norm uses the statistics of this batch, and
            updates its running ones.
          test_local_stats: whether it uses those of this batch outside training too.
        """


class ResBlockV1(ResBlock):
    """Two 3x3 convolutions, with a shortcut that has no parameters.

    The shortcut takes every `stride`-th row and column and pads the channels with
    zeros (He et al., 2016, https://arxiv.org/abs/1512.03385, section 3.3, option A).

    Args:
      output_channels: number of output channels.
      stride: stride of the first convolution.
      name: name of the module.

    Raises:
      ValueError: if a size is no integer >= 1; by a call with inputs of more channels
        than `output_channels`.
    """

    def __init__(self, output_channels: int, stride: int, name: str | None = None):
        super().__init__(name=name)
        self.output_channels = _checks.positive_int("output_channels", output_channels)
        self.stride = _checks.positive_int("stride", stride)
        self.conv0 = conv(output_channels, 3, stride, name="conv0")
        self.batchnorm_0 = batch_norm("batchnorm_0")
        self.conv1 = conv(output_channels, 3, 1, name="conv1")
        self.batchnorm_1 = batch_norm("batchnorm_1")

    def __call__(
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> chex.Array:
        inputs = jnp.asarray(inputs)
        mode = (is_training, test_local_stats)
        out = jax.nn.relu(self.batchnorm_0(self.conv0(inputs), *mode))
        out = self.batchnorm_1(self.conv1(out), *mode)
        return jax.nn.relu(out + self._shortcut(inputs))

    def _shortcut(self, inputs: jax.Array) -> jax.Array:
        missing = self.output_channels - inputs.shape[-1]
        if missing < 0:
            raise ValueError(
                "ResBlockV1 cannot lower the number of channels: output_channels is "
                f"{self.output_channels}, got inputs with {inputs.shape[-1]}."
            )
        before = missing // 2
        rows = inputs[:, :: self.stride, :: self.stride]
        return jnp.pad(rows, [(0, 0)] * 3 + [(before, missing - before)])


class ResBlockV2(ResBlock):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions, each after batch norm and relu.

    He et al., 2016, Identity mappings in deep residual networks,
    https://arxiv.org/abs/1603.05027.

    Args:
      output_channels: number of output channels; the bottleneck has a quarter.
      stride: stride of the 3x3 convolution.
      use_projection: whether the shortcut is a 1x1 convolution; needed where the
        stride is not 1 or the number of channels changes.
      name: name of the module.

    Raises:
      ValueError: if `stride` is no integer >= 1 or `output_channels` is below 4; by a
        call, if a projection is needed and `use_projection` is false.
    """

    def __init__(
        self,
        output_channels: int,
        stride: int,
        use_projection: bool,
        name: str | None = None,
    ):
        super().__init__(name=name)
        if _checks.positive_int("output_channels", output_channels) < 4:
            raise ValueError(f"output_channels must be >= 4, got {output_channels}.")
        _checks.positive_int("stride", stride)
        width = output_channels // 4
        self.use_projection = use_projection
        self.batchnorm_0 = batch_norm("batchnorm_0")
        self.conv0 = conv(width, 1, 1, name="conv0")
        if use_projection:
            self.conv_shortcut = conv(output_channels, 1, stride, name="conv_shortcut")
        self.batchnorm_1 = batch_norm("batchnorm_1")
        self.conv1 = conv(width, 3, stride, name="conv1")
        self.batchnorm_2 = batch_norm("batchnorm_2")
        self.conv2 = conv(output_channels, 1, 1, name="conv2")

    def __call__(
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> chex.Array:
        inputs = jnp.asarray(inputs)
        mode = (is_training, test_local_stats)
        normed = jax.nn.relu(self.batchnorm_0(inputs, *mode))
        out = self.conv0(normed)
        # Before conv1: the order of first use is the order of the initial keys.
        shortcut = self.conv_shortcut(normed) if self.use_projection else inputs
        out = self.conv1(jax.nn.relu(self.batchnorm_1(out, *mode)))
        out = self.conv2(jax.nn.relu(self.batchnorm_2(out, *mode)))
        if out.shape != shortcut.shape:
            raise ValueError(
                "ResBlockV2 needs use_projection=True to go from shape "
                f"{list(inputs.shape)} to {list(out.shape)}."
            )
        return out + shortcut
