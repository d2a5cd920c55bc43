"""Who hears of the pipeline's steps: the terminal, a test, or nobody."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """Hears which stage runs and how far it is."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes or steps of `what`."""
        ...


class Silent:
    """Hears nothing."""

    def stage(self, name: str) -> None:
        """Do nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Do nothing."""


class Stopwatch:
    """Seconds per stage, for `Measured`."""

    def __init__(self, listener: Listener) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Announce a stage and time it."""
        self._listener.stage(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)
