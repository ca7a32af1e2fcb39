"""Residual networks as Haiku modules, and the canonical configurations."""

import abc
import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks
from enn.networks.base import OutputWithPrior
from enn.networks.inputs import as_images, check_equal_lengths, layer_sizes

_VERSIONS = ("V1", "V2")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Groups of residual blocks; hashable, so that it can be a static argument.

    >>> from enn import networks
    >>> networks.ResNetConfig([16, 32], [2, 2], [1, 2], "V1").num_groups
    2
    >>> networks.ResNetConfig([16, 32], [2, 2], [1], "V1")
    Traceback (most recent call last):
        ...
    ValueError: One entry for each layer is needed: channels_per_group has 2, ...

    Attributes:
      channels_per_group: output channels of the blocks of each group.
      blocks_per_group: number of blocks of each group.
      strides_per_group: stride of the first block of each group.
      resnet_block_version: 'V1' or 'V2', see `ResBlockV1` and `ResBlockV2`.

    Raises:
      ValueError: if the lists have different lengths, an entry is not an integer >= 1,
        or the version is unknown.
    """

    channels_per_group: Sequence[int]
    blocks_per_group: Sequence[int]
    strides_per_group: Sequence[int]
    resnet_block_version: str

    def __post_init__(self) -> None:
        lists = {
            name: getattr(self, name)
            for name in ("channels_per_group", "blocks_per_group", "strides_per_group")
        }
        check_equal_lengths(**lists)
        for name, sizes in lists.items():
            object.__setattr__(self, name, tuple(layer_sizes(name, sizes)))
        _checks.one_of("resnet_block_version", self.resnet_block_version, _VERSIONS)

    @property
    def num_groups(self) -> int:
        """Number of groups of blocks."""
        return len(self.channels_per_group)


_CIFAR = {
    "channels_per_group": (16, 32, 64),
    "strides_per_group": (1, 2, 2),
    "resnet_block_version": "V1",
}


_IMAGENET = {
    "channels_per_group": (256, 512, 1024, 2048),
    "strides_per_group": (1, 2, 2, 2),
    "resnet_block_version": "V2",
}


class CanonicalResNets(enum.Enum):
    """The networks of the papers, each a `ResNetConfig`.

    18 to 110 are for CIFAR (He et al., 2016, Deep residual learning for image
    recognition, https://arxiv.org/abs/1512.03385, section 4.2), the others for
    ImageNet (He et al., 2016, Identity mappings in deep residual networks,
    https://arxiv.org/abs/1603.05027). The numbers count layers, except that
    RESNET_18 has 14 here.

    >>> from enn import networks
    >>> config = networks.CanonicalResNets.RESNET_50.value
    >>> config.blocks_per_group, config.resnet_block_version
    ((3, 4, 6, 3), 'V2')
    """

    RESNET_18 = ResNetConfig(blocks_per_group=(2, 2, 2), **_CIFAR)
    RESNET_32 = ResNetConfig(blocks_per_group=(5, 5, 5), **_CIFAR)
    RESNET_44 = ResNetConfig(blocks_per_group=(7, 7, 7), **_CIFAR)
    RESNET_56 = ResNetConfig(blocks_per_group=(9, 9, 9), **_CIFAR)
    RESNET_110 = ResNetConfig(blocks_per_group=(18, 18, 18), **_CIFAR)
    RESNET_50 = ResNetConfig(blocks_per_group=(3, 4, 6, 3), **_IMAGENET)
    RESNET_101 = ResNetConfig(blocks_per_group=(3, 4, 23, 3), **_IMAGENET)
    RESNET_152 = ResNetConfig(blocks_per_group=(3, 8, 36, 3), **_IMAGENET)
    RESNET_200 = ResNetConfig(blocks_per_group=(3, 24, 36, 3), **_IMAGENET)


class BatchNorm(hk.BatchNorm):
    """`hk.BatchNorm` whose `init` does not depend on `is_training`.

    Evaluation reads the running statistics, which Haiku creates in training alone;
    here `init` creates them in both modes, with the same names and values. Evaluation
    with `test_local_stats` needs none and creates none.
    """

    def __call__(  # pyrefly: ignore[bad-override]
        self, inputs: chex.Array, is_training: bool, test_local_stats: bool = False
    ) -> Any:
        """Returns the normalised `inputs`, `[batch, height, width, channels]`."""
        creates_statistics = hk.running_init() and not test_local_stats
        return super().__call__(
            jnp.asarray(inputs), is_training or creates_statistics, test_local_stats
        )


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
    ) -> jax.Array:
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
      ValueError: if a size is not an integer >= 1; by a call with inputs of more
        channels than `output_channels`.
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
    ) -> jax.Array:
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
      ValueError: if `stride` is not an integer >= 1 or `output_channels` is below 4; by
        a call, if a projection is needed and `use_projection` is false.
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
    ) -> jax.Array:
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

    He et al., 2016, https://arxiv.org/abs/1512.03385 ('V1') and
    https://arxiv.org/abs/1603.05027 ('V2').

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> config = networks.ResNetConfig([16, 32], [1, 1], [1, 2], "V1")
    >>> def forward(x):
    ...     return networks.ResNet(10, config)(x, is_training=True)
    >>> net, x = hk.transform_with_state(forward), np.ones([2, 8, 8, 3])
    >>> key = jax.random.key(0)
    >>> out, _ = jax.eval_shape(lambda: net.apply(*net.init(key, x), key, x))
    >>> [out.extra[f"hidden_{block}"].shape for block in (0, 1)]
    [(2, 8, 8, 16), (2, 4, 4, 32)]

    Args:
      num_classes: number of classes.
      config: groups of blocks, such as `CanonicalResNets.RESNET_50.value`.
      name: name of the module.
      expose_hidden: whether the output carries the activations of every block. They
        take memory wherever the whole output leaves a `jax.jit` or is mapped.

    Raises:
      ValueError: if `num_classes` is not an integer >= 1; by a call with inputs that
        are not `[batch, height, width, channels]`.
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
