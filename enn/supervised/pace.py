"""How long a dispatch of training steps takes, and so how many steps it holds."""

import time

from enn.supervised.chunks import MAX_STEPS

_SECONDS_PER_DISPATCH = 0.5


class Pace:
    """How many steps go into a dispatch, so that it takes about half a second.

    Attributes:
      steps: how many go into the next one.
      wanted: how many would be right. Several processes take the least of all.
    """

    def __init__(self) -> None:
        self.steps = self.wanted = 1
        self.start()

    def start(self) -> None:
        """Starts the clock."""
        self._noted_at, self._running_steps = time.monotonic(), 0

    def note(self, num_steps: int) -> None:
        """Notes that a dispatch has started, and that the one before has finished."""
        now = time.monotonic()
        if self._running_steps:
            rate = self._running_steps / (now - self._noted_at)
            wanted = min(rate * _SECONDS_PER_DISPATCH, 8 * self.steps, MAX_STEPS)
            self.wanted = max(int(wanted), 1)
        self._noted_at, self._running_steps = now, num_steps
