"""Trained networks: their descriptions, loading and sampling.

Import the modules: `base` and `epinet` hold the two kinds of checkpoint, `catalog` the
published ones, `utils` loading and samplers. One's own networks are saved by
`save_pretrained`, and read by `load_enn` or, their parameters alone, `load_pretrained`.
`push_to_hub` puts them on the Hugging Face hub, and the same two read them from there.
"""

from enn.checkpoints.constructors import register_constructor
from enn.checkpoints.hub import push_to_hub
from enn.checkpoints.pretrained import load_enn, load_pretrained, save_pretrained

__all__ = [
    "load_enn",
    "load_pretrained",
    "push_to_hub",
    "register_constructor",
    "save_pretrained",
]


def __dir__() -> list[str]:
    return sorted(__all__)
