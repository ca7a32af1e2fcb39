"""Where an iterator over shuffled epochs stands: state to report and to go back to."""

import abc

from enn import _checks


class Positioned(abc.ABC):
    """An iterator whose order depends on a seed and on how many rows there are.

    Subclasses set `_seed`, `_num_data` and `_position`, the number of rows read.
    """

    _seed: int
    _num_data: int
    _position: int

    def state(self) -> dict[str, int]:
        """Returns where the iterator stands, for `restore`; holds plain ints."""
        return {
            "seed": self._seed,
            "num_data": self._num_data,
            "position": self._position,
        }

    @abc.abstractmethod
    def restore(self, state: dict[str, int]) -> None:
        """Goes to the position of `state`."""

    def _position_of(self, state: dict[str, int]) -> int:
        """The position of `state`, which must be of the same seed and data."""
        own = self.state()
        for name in ("seed", "num_data"):
            if state[name] != own[name]:
                raise ValueError(
                    f"state was saved with {name}={state[name]}, but this iterator "
                    f"has {name}={own[name]}: its order differs."
                )
        return _checks.non_negative_int("position", state["position"])
