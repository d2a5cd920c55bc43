"""Program of `open_in_process`: host.py TARGET FOLDER THREADS, our own session, served."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from backends.base import Session
from backends.process.serve import Unfit, serve
from exporter.contract import Batches
from exporter.errors import SparseExportError
from exporter.registry import load_target, parse_target
from exporter.store.dtypes import F32


class _Hosted:
    """The dict-and-tuple face of a Session that `serve` speaks to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.max_tokens = session.max_tokens
        self.max_batch = int(getattr(session, "max_batch", 1))
        self.close = session.close

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"]) -> F32:
        return self._session.prefill(tokens, logits=logits)

    def decode(self, token: int) -> F32:
        return self._session.decode(token)

    def generate(self, tokens: Sequence[int], n: int) -> tuple[Sequence[int], Sequence[float]]:
        made = self._session.generate(tokens, n)
        return made.tokens, made.seconds

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], n: int
    ) -> list[tuple[Sequence[int], Sequence[float]]]:
        made = cast(Batches, self._session).generate_batch(prompts, n)
        return [(one.tokens, one.seconds) for one in made]

    def facts(self) -> dict[str, Any]:
        return asdict(self._session.facts())


def _build(target: str, folder: Path, threads: int | None) -> _Hosted:
    name, options = parse_target(target)
    try:
        return _Hosted(load_target(name, options).open(folder, threads=threads))
    except SparseExportError as error:
        raise Unfit(error.code, error.found) from error


if __name__ == "__main__":
    _target, _folder, _threads = sys.argv[1:]
    sys.exit(serve(lambda: _build(_target, Path(_folder), int(_threads) or None)))
