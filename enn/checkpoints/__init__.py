"""Trained networks: their descriptions, loading and sampling.

Import the modules: `base` and `epinet` hold the two kinds of checkpoint, `catalog` the
published ones, `utils` loading and samplers. Parameters of one's own networks are for
`save_pretrained` and `load_pretrained`.
"""

from enn.checkpoints.pretrained import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]
