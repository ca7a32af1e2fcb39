"""The features that a network's last layer sees, among its extra outputs."""

from collections.abc import Iterable
from typing import Any, TypeVar

import chex

from enn.networks.base import Output, OutputWithPrior, parse_to_output_with_prior

FEATURES = "features"

Seen = TypeVar("Seen")


def called_once(seen: list[Seen], last_layer: str, names: Iterable[str]) -> Seen:
    """Returns the one entry of `seen`, what a layer was called with.

    Raises:
      ValueError: if there is another number of entries; it names the layers.
    """
    if len(seen) != 1:
        raise ValueError(
            "The layer whose input is taken as features must be called once, and be "
            f"one of {sorted(names)}; {last_layer!r} is called {len(seen)} times."
        )
    return seen[0]


def with_features(out: Output, features: chex.Array) -> OutputWithPrior:
    """Returns `out` with `features` in its `extra`."""
    out = parse_to_output_with_prior(out)
    return out._replace(extra={**out.extra, FEATURES: features})


class Spy:
    """Takes the place of a layer, and keeps the input of every call in `seen`."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.seen: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(args[0])
        return self.layer(*args, **kwargs)
