"""Checkpoints of networks."""

from enn.networks.epinet.checkpoint import EnnCheckpoint, EnnCtor, ParamsStateLoadFn

__all__ = ["EnnCheckpoint", "EnnCtor", "ParamsStateLoadFn"]
