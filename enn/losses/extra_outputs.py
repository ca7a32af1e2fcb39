"""Reads the further outputs of a network that a loss needs."""

from typing import Any

from enn.networks.base import OutputWithPrior


def extra_output(net_out: Any, name: str) -> Any:
    """Returns `net_out.extra[name]`.

    Raises:
      ValueError: if the network output has no extra output of that name.
    """
    if not isinstance(net_out, OutputWithPrior):
        raise ValueError(
            f"The network must return an OutputWithPrior with extra[{name!r}], "
            f"got a {type(net_out).__name__}."
        )
    if name not in net_out.extra:
        raise ValueError(
            f"The network output must have extra[{name!r}], "
            f"got extra outputs {sorted(net_out.extra)}."
        )
    return net_out.extra[name]
