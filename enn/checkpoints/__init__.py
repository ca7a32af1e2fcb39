"""Trained networks: their descriptions, loading and sampling.

Import the modules: `base` and `epinet` hold the two kinds of checkpoint.
"""
