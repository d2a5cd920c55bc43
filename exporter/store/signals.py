"""Signals around an output: a polite end cleans up, and never in the middle of the swap."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def stops_raise() -> Generator[None, None, None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that `finally` runs.

    A handler that the program set itself is left alone. Does nothing outside the main thread,
    where Python takes no handlers.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    unset = [n for n in _STOPS if signal.getsignal(n) is signal.SIG_DFL]
    with _handlers(unset, stop):
        yield


@contextmanager
def deferred_stops() -> Generator[None, None, None]:
    """Signals that come inside the block take effect at its end."""
    came: list[int] = []
    ours = [n for n in _STOPS if signal.getsignal(n) not in (None, signal.SIG_IGN)]
    with _handlers(ours, lambda number, frame: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _handlers(numbers: list[signal.Signals], handler: _Handler) -> Generator[None, None, None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(n, signal.signal(n, handler)) for n in numbers]
    try:
        yield
    finally:
        for number, old in before:
            signal.signal(number, old)
