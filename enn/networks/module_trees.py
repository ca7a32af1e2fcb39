"""Parameters and state of two networks in one tree, by the names of their modules."""

from collections.abc import Iterable, Mapping
from typing import Any


def select_modules(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns the modules of `tree` with these names, or raises ValueError."""
    missing = sorted(set(names) - set(tree))
    if missing:
        raise ValueError(f"Parameters or state lack the module {missing[0]!r}.")
    return {name: tree[name] for name in names}


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
