"""Parameters and state of two networks in one tree, by the names of their modules."""

from collections.abc import Mapping
from typing import Any


def merge_modules(base: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the modules of both, or raises ValueError for a name that both have.

    Args:
      base: parameters or state of the base network by module name.
      head: the same of the network on top of it.
    """
    shared = sorted(set(base) & set(head))
    if shared:
        raise ValueError(
            f"Base network and head both have a module named {shared[0]!r}: give one "
            f"of them another name. All names in common: {', '.join(shared)}."
        )
    return {**head, **base}
