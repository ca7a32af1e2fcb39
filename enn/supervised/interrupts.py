"""Ctrl-C and other signals, held back until training can stop cleanly."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax


@contextlib.contextmanager
def deferred(*signals: signal.Signals) -> Iterator[threading.Event]:
    """Defers signals until the block ends; a second one takes effect at once.

    Yields:
      An event that is set by any of them. The block may set it too.

    Raises:
      KeyboardInterrupt: at the end of the block, if the event is set.
    """
    event = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            signal.signal(number, defaults[number])
            signal.raise_signal(number)
        event.set()

    defaults: dict[int, Any] = {}
    # One of several processes must not stop by itself.
    if threading.current_thread() is threading.main_thread() and (
        jax.process_count() == 1
    ):
        for number in signals:
            # Handlers of others stay.
            handler = signal.getsignal(number)
            if handler in (signal.default_int_handler, signal.SIG_DFL):
                defaults[number] = signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in defaults.items():
            signal.signal(number, handler)
    if event.is_set():
        raise KeyboardInterrupt
