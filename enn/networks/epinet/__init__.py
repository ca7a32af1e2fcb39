"""Epinets: networks that add uncertainty to a base network at small cost."""

from enn.networks.epinet.mlp import make_mlp_epinet

__all__ = ["make_mlp_epinet"]
