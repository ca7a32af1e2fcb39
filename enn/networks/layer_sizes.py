"""The one check of a list of layer widths."""

from collections.abc import Sequence

from enn import _checks


def layer_sizes(name: str, sizes: Sequence[int]) -> list[int]:
    """Returns `sizes` as ints, or raises ValueError unless there are any, all >= 1."""
    if not len(sizes):
        raise ValueError(f"{name} must hold at least one layer size.")
    return [_checks.positive_int(name, size) for size in sizes]
