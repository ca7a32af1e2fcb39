"""Ctrl-C that waits for a good moment."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax


@contextlib.contextmanager
def deferred() -> Iterator[threading.Event]:
    """Holds Ctrl-C back until the block ends; a second one comes through at once.

    Yields:
      An event that is set by Ctrl-C. The block may set it too.

    Raises:
      KeyboardInterrupt: at the end of the block, if the event is set.
    """
    event = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            signal.default_int_handler(number, frame)
        event.set()

    # Handlers of others stay. One of several processes must not stop by itself.
    holds_back = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and jax.process_count() == 1
    )
    if holds_back:
        signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        if holds_back:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if event.is_set():
        raise KeyboardInterrupt
