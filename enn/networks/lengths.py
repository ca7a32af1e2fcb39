"""Check of lists that describe the same layers."""

from collections.abc import Sequence
from typing import Any


def check_equal_lengths(**sequences: Sequence[Any]) -> None:
    """Raises ValueError unless all sequences have the same length >= 1."""
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"One entry for each layer is needed: {found}.")
