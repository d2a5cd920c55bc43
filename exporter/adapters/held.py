"""The arrays of one module, made once for all its row tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class LastMade(Generic[ValueT]):
    """Holds what was made last, by key: a merge asks for one module's tiles in a row.

    Shared by the deltas of one adapter, so that it never holds more than one module.
    """

    def __init__(self) -> None:
        self._held: tuple[str, ValueT] | None = None

    def get(self, key: str, make: Callable[[], ValueT]) -> ValueT:
        """The value of `key`; `make` is called unless it is held."""
        held = self._held  # read once: another thread may set it
        if held is None or held[0] != key:
            self._held = None  # not two in memory
            held = (key, make())
            self._held = held
        return held[1]
