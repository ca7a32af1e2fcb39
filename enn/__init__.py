"""Epistemic neural networks: networks that know what they don't know.

Subpackages load on first use: `import enn` alone is cheap, and `enn.networks`,
`enn.losses`, ... then work as attributes.
"""

import importlib
from typing import Any

from enn._metadata import __version__

_SUBMODULES = (
    "active_learning",
    "base",
    "calibration",
    "checkpoints",
    "data_noise",
    "datasets",
    "extra",
    "loggers",
    "losses",
    "metrics",
    "networks",
    "posteriors",
    "supervised",
    "sweeps",
    "testbed",
    "testing",
    "utils",
)

__all__ = ("__version__", *_SUBMODULES)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"enn.{name}")
    raise AttributeError(f"module 'enn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
