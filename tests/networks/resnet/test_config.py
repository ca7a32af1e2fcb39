from typing import Any

import jax
import numpy as np
import pytest

from enn.networks.resnet.base import EnsembleResNetENN
from enn.networks.resnet.lib import CanonicalResNets, ResNetConfig
from tests.support import fast

CIFAR = ((16, 32, 64), (1, 2, 2), "V1")
IMAGENET = ((256, 512, 1024, 2048), (1, 2, 2, 2), "V2")
CANONICAL = {
    "RESNET_18": ((2, 2, 2), CIFAR),
    "RESNET_32": ((5, 5, 5), CIFAR),
    "RESNET_44": ((7, 7, 7), CIFAR),
    "RESNET_56": ((9, 9, 9), CIFAR),
    "RESNET_110": ((18, 18, 18), CIFAR),
    "RESNET_50": ((3, 4, 6, 3), IMAGENET),
    "RESNET_101": ((3, 4, 23, 3), IMAGENET),
    "RESNET_152": ((3, 8, 36, 3), IMAGENET),
    "RESNET_200": ((3, 24, 36, 3), IMAGENET),
}


def test_canonical_networks_have_the_groups_of_the_papers() -> None:
    configs = {net.name: net.value for net in CanonicalResNets}
    assert configs == {
        name: ResNetConfig(channels, blocks, strides, version)
        for name, (blocks, (channels, strides, version)) in CANONICAL.items()
    }
    assert list(configs) == list(CANONICAL)


@pytest.mark.parametrize(
    ("name", "num_params"),
    [("RESNET_18", 172_506), ("RESNET_32", 464_154), ("RESNET_50", 23_520_842)],
)
def test_number_of_parameters(name: str, num_params: int) -> None:
    enn = EnsembleResNetENN(10, config=CanonicalResNets[name].value)
    shapes, _ = fast.shapes(enn, np.zeros((1, 8, 8, 3), np.float32))
    leaves = jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple))
    assert sum(np.prod(shape) for shape in leaves) == num_params


def test_configs_from_lists_are_hashable_and_count_their_groups() -> None:
    config = ResNetConfig([16, 32], [2, 1], [1, 2], "V1")
    assert config.num_groups == 2
    assert hash(config) == hash(ResNetConfig((16, 32), (2, 1), (1, 2), "V1"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([16, 32], [2], [1, 2], "V1"), "blocks_per_group has 1"),
        (([], [], [], "V1"), "channels_per_group has 0"),
        (([16, 0], [2, 1], [1, 2], "V1"), "channels_per_group.*0"),
        (([16, 32], [2, 1], [1, 2.5], "V1"), "strides_per_group.*2.5"),
        (([16, 32], [2, 1], [1, 2], "V3"), "resnet_block_version.*'V1', 'V2'.*'V3'"),
    ],
)
def test_wrong_configs_raise(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(*args)
