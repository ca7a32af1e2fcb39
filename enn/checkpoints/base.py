"""Checkpoints of networks."""

from enn.networks.checkpoints import EnnCheckpoint, EnnCtor, ParamsStateLoadFn

__all__ = ["EnnCheckpoint", "EnnCtor", "ParamsStateLoadFn"]
