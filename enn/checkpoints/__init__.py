"""Trained networks: their descriptions, loading and sampling.

Import the modules: `base` and `epinet` hold the two kinds of checkpoint, `catalog` the
published ones, `utils` loading and samplers. One's own networks are saved by
`save_pretrained`, and read by `load_enn` or, their parameters alone, `load_pretrained`.
"""

from enn.checkpoints.constructors import register_constructor
from enn.checkpoints.pretrained import load_enn, load_pretrained, save_pretrained

__all__ = ["load_enn", "load_pretrained", "register_constructor", "save_pretrained"]
