"""slow_host.py TARGET FOLDER THREADS FACTOR: a session whose every step takes FACTOR times as long.

For planting a slow-down of known size in a real engine's step; speaks as backends/process/host.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.process.serve import greedy, serve
from exporter.contract import Session
from exporter.registry import load_target, parse_target


class Slow:
    """Greedy steps by `prefill` and `decode`, each stretched by waiting; factor 1: as they are."""

    def __init__(self, session: Session, factor: float) -> None:
        self._session, self._more = session, factor - 1
        self.max_tokens = session.max_tokens
        self.close = session.close

    def prefill(self, tokens: Sequence[int], *, logits: Any) -> Any:
        """As `Session.prefill`, stretched."""
        return self._stretch(lambda: self._session.prefill(tokens, logits=logits))

    def decode(self, token: int) -> Any:
        """As `Session.decode`, stretched."""
        return self._stretch(lambda: self._session.decode(token))

    def generate(self, tokens: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        """Greedy tokens by the steps above."""
        return greedy(self, list(tokens), n)

    def facts(self) -> dict[str, Any]:
        """As `Session.facts`."""
        return asdict(self._session.facts())

    def _stretch(self, step: Any) -> Any:
        start = time.perf_counter()
        found = step()
        end = time.perf_counter()
        until = end + self._more * (end - start)
        while time.perf_counter() < until:
            pass
        return found


def build(target: str, folder: str, threads: int, factor: float) -> Slow:
    """The target's session, wrapped."""
    name, options = parse_target(target)
    session = load_target(name, options).open(Path(folder), threads=threads or None)
    return Slow(session, factor)


if __name__ == "__main__":
    _target, _folder, _threads, _factor = sys.argv[1:]
    sys.exit(serve(lambda: build(_target, _folder, int(_threads), float(_factor))))
