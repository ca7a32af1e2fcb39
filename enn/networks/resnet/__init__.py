"""Residual networks: `lib` holds the modules, `base` and `priors` the ENNs."""
