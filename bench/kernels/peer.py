"""DeepSparse in its own environment, as cases that take turns with ours."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.deepsparse.runtime import RUNTIME
from bench.kernels.cases import Case
from exporter.errors import EngineUnfit

__all__ = ["Worker", "case_name", "deepsparse_worker", "sparsity"]

_WORKER = Path(__file__).with_name("worker.py")
_MOST_LAYERS = 40  # so that a chain's dense file stays below 2 GB at 2048 x 5632


def sparsity(pattern: str) -> float:
    """Zeros of a pattern: "70%" or "2:8"; N:M has no kernels in DeepSparse, so zeros count."""
    if pattern.endswith("%"):
        return float(pattern[:-1]) / 100
    n, m = map(int, pattern.split(":"))
    return 1 - n / m


class Worker:
    """The process; `isa` and `version` are what the engine says of itself once it has built.

    Raises:
        EngineUnfit: `engine-missing` where the environment is not installed, `engine-crashed`.
    """

    def __init__(self, threads: int) -> None:
        """Start it."""
        argv = [str(RUNTIME.interpreter()), "-I", "-B", str(_WORKER), str(threads)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True,
            env=RUNTIME.environment(),
        )  # fmt: skip
        self.facts: dict[str, Any] = {}

    def cases(
        self, shape: tuple[int, int], m: int, patterns: Sequence[str], total: int
    ) -> list[Case]:
        """One chain of linears for each sparsity of `patterns`; earlier ones are dropped.

        Args:
            total: bytes that the kept values of a chain's linears together exceed, as the copies of
                our cases do, so that no cache holds them.
        """
        found: list[Case] = []
        for zeros in dict.fromkeys(map(sparsity, patterns)):
            kept = shape[0] * shape[1] * 4 * (1 - zeros)
            layers = min(max(2, math.ceil(total / kept / 2) * 2), _MOST_LAYERS)
            name = case_name(zeros)
            given = {"name": name, "n": shape[0], "k": shape[1], "m": m, "zeros": zeros}
            forget = not found
            self.facts = self._ask({"build": given | {"layers": layers, "forget": forget}})
            found.append(Case(name, (), int(kept), self._timer(name), layers))
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _timer(self, name: str) -> Callable[[int], float]:
        def seconds(calls: int) -> float:
            return float(self._ask({"time": {"name": name, "calls": calls}})["seconds"])

        return seconds

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        into, out = self._process.stdin, self._process.stdout
        line = ""
        if into is not None and out is not None:
            into.write(json.dumps(request) + "\n")
            into.flush()
            line = out.readline()
        if not line:
            raise EngineUnfit(
                "engine-crashed", "DeepSparse's process of the kernel benchmark ended"
            )
        return json.loads(line)


def case_name(zeros: float) -> str:
    """How a chain is called in the times."""
    return f"deepsparse {zeros:.0%}"


@contextmanager
def deepsparse_worker(threads: int, wanted: bool = True) -> Generator[Worker | None]:
    """A worker while the block runs; None where it is not wanted or not installed."""
    if not wanted or not RUNTIME.status().available:
        yield None
        return
    worker = Worker(threads)
    try:
        yield worker
    finally:
        worker.close()
