"""Checkpoints of epinets."""

from enn.networks.epinet.checkpoint import EpinetCheckpoint

__all__ = ["EpinetCheckpoint"]
