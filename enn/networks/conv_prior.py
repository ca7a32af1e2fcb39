"""The small convolutional network that serves as a prior function of images."""

from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import numpy as np

from enn import _checks
from enn.networks.layer_sizes import layer_sizes
from enn.networks.lengths import check_equal_lengths

KernelShape = int | Sequence[int]


def conv_prior_net(
    num_classes: int,
    output_channels: Sequence[int],
    kernel_shapes: Sequence[KernelShape],
    strides: Sequence[int],
) -> Callable[[chex.Array], chex.Array]:
    """Returns a network of convolutions with relu, then a linear layer.

    For use in a Haiku transform: maps images `[batch, height, width, channels]` to
    `[batch, num_classes]`. Its modules are `prior_conv`, `prior_conv_1`, ... and
    `prior`.

    Args:
      num_classes: number of outputs.
      output_channels: channels of each convolution.
      kernel_shapes: kernel size of each convolution, one number if it is square.
      strides: stride of each convolution.

    Raises:
      ValueError: if the lists have different lengths, or a size is no integer >= 1.
    """
    check_equal_lengths(
        output_channels=output_channels, kernel_shapes=kernel_shapes, strides=strides
    )
    channels = layer_sizes("output_channels", output_channels)
    layer_sizes("strides", strides)
    for kernel_shape in kernel_shapes:
        layer_sizes("kernel_shapes", np.atleast_1d(kernel_shape).tolist())
    num_outputs = _checks.positive_int("num_classes", num_classes)

    def forward(inputs: chex.Array) -> chex.Array:
        out = inputs
        for size, kernel_shape, stride in zip(
            channels, kernel_shapes, strides, strict=True
        ):
            conv = hk.Conv2D(size, kernel_shape, stride=stride, name="prior_conv")
            out = jax.nn.relu(conv(out))
        return hk.nets.MLP([num_outputs], name="prior")(hk.Flatten()(out))

    return forward
