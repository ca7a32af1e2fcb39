"""Which residual network: its groups of blocks, and the canonical choices."""

import dataclasses
import enum
from collections.abc import Sequence

from enn import _checks
from enn.networks.layer_sizes import layer_sizes
from enn.networks.lengths import check_equal_lengths

_VERSIONS = ("V1", "V2")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Groups of residual blocks; hashable, so that it can be a static argument.

    Attributes:
      channels_per_group: output channels of the blocks of each group.
      blocks_per_group: number of blocks of each group.
      strides_per_group: stride of the first block of each group.
      resnet_block_version: 'V1' or 'V2', see `ResBlockV1` and `ResBlockV2`.

    Raises:
      ValueError: if the lists have different lengths, an entry is no integer >= 1, or
        the version is unknown.
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
