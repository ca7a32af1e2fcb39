"""Loading checkpoints and drawing samples from them."""

from enn.checkpoints.files import init_from_file, load_from_file

__all__ = ["init_from_file", "load_from_file"]
