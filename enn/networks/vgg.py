"""A VGG network for small images, and an ensemble of them."""

from collections.abc import Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks
from enn.networks.base import Output, OutputWithPrior
from enn.networks.ensembles import EnsembleWithState
from enn.networks.inputs import as_images, check_equal_lengths, layer_sizes
from enn.networks.resnet.lib import BatchNorm

BatchNormIndex = tuple[Any, bool]
"""An index with a flag that says whether batch norm is training."""

_CHANNELS = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
_STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)


class VGG(hk.Module):
    """3x3 convolutions with batch norm, global average pooling, a linear layer.

    After Simonyan and Zisserman, 2015, Very deep convolutional networks for
    large-scale image recognition, https://arxiv.org/abs/1409.1556.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> net = hk.transform_with_state(lambda x: networks.VGG(10, [8, 16], [1, 2])(x))
    >>> params, _ = jax.eval_shape(net.init, jax.random.key(0), np.ones([1, 32, 32, 3]))
    >>> [leaves["w"].shape for leaves in params.values() if "w" in leaves]
    [(3, 3, 3, 8), (3, 3, 8, 16), (16, 10)]

    Args:
      num_output_classes: number of classes.
      vgg_output_channels: channels of each convolution.
      vgg_strides: stride of each convolution.
      name: name of the module.
      expose_hidden: whether the output is an `OutputWithPrior` with the pooled features
        as `extra["final_out"]`, `[batch, num_channels]`, and not the logits alone.

    Raises:
      ValueError: if the two lists have different lengths, or a size is not
        an integer >= 1; by a call with inputs that are not
        `[batch, height, width, channels]`.
    """

    def __init__(
        self,
        num_output_classes: int,
        vgg_output_channels: Sequence[int] = _CHANNELS,
        vgg_strides: Sequence[int] = _STRIDES,
        name: str | None = None,
        expose_hidden: bool = False,
    ):
        super().__init__(name=name)
        self.expose_hidden = expose_hidden
        check_equal_lengths(
            vgg_output_channels=vgg_output_channels, vgg_strides=vgg_strides
        )
        channels = layer_sizes("vgg_output_channels", vgg_output_channels)
        strides = layer_sizes("vgg_strides", vgg_strides)
        self.convs = [
            hk.Conv2D(size, kernel_shape=3, stride=stride, name=f"conv_2d_{i}")
            for i, (size, stride) in enumerate(zip(channels, strides, strict=True))
        ]
        self.batch_norms = [
            BatchNorm(
                create_scale=False,
                create_offset=True,
                decay_rate=0.999,
                name=f"batchnorm_{i}",
            )
            for i in range(len(channels))
        ]
        num_classes = _checks.positive_int("num_output_classes", num_output_classes)
        self.logits = hk.Linear(num_classes, name="logits")

    def __call__(
        self,
        inputs: chex.Array,
        is_training: bool = True,
        test_local_stats: bool = False,
    ) -> Output:
        """Returns logits `[batch, num_output_classes]`.

        Args:
          inputs: images, `[batch, height, width, channels]`.
          is_training: whether batch norm uses the statistics of this batch, and
            updates its running ones.
          test_local_stats: whether it uses those of this batch outside training too.
        """
        out = as_images(inputs)
        for conv, batch_norm in zip(self.convs, self.batch_norms, strict=True):
            out = batch_norm(conv(out), is_training, test_local_stats)
            out = jax.nn.relu(out)
        features = jnp.mean(out, axis=(1, 2))
        logits = self.logits(features)
        if not self.expose_hidden:
            return logits
        return OutputWithPrior(logits, extra={"final_out": features})


class EnsembleVGGENN(EnsembleWithState):
    """An ensemble of `VGG`s: the index picks a member.

    f(x, k) = f_{θ_k}(x), as a deep ensemble (Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474).

    Training and evaluation are two objects with the same parameters and state: one
    with `is_training`, one without.

    Args:
      num_output_classes: number of classes.
      num_ensemble: number of members.
      is_training: whether batch norm uses the statistics of the batch and updates its
        running ones.
      test_local_stats: whether it uses those of the batch outside training too.
      vgg_output_channels: channels of each convolution.
      vgg_strides: stride of each convolution.
      expose_hidden: whether the output carries the pooled features, see `VGG`.
    """

    def __init__(
        self,
        num_output_classes: int,
        num_ensemble: int = 1,
        is_training: bool = True,
        test_local_stats: bool = False,
        vgg_output_channels: Sequence[int] = _CHANNELS,
        vgg_strides: Sequence[int] = _STRIDES,
        expose_hidden: bool = False,
    ):
        def forward(inputs: chex.Array) -> Output:
            net = VGG(
                num_output_classes,
                vgg_output_channels,
                vgg_strides,
                expose_hidden=expose_hidden,
            )
            return net(inputs, is_training, test_local_stats)

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        super().__init__(model, num_ensemble)
