"""The small residual networks of the tests."""

from enn.networks.resnet.lib import ResNetConfig
from tests.support import golden

IMAGES = golden.normal(2, 8, 8, 3, seed=5)
V1 = ResNetConfig((16, 32), (2, 1), (1, 2), "V1")
V2 = ResNetConfig((16, 32), (2, 1), (1, 2), "V2")
TINY = ResNetConfig((16,), (1,), (1,), "V1")
