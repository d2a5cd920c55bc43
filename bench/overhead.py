"""What the harness itself costs, and whether it finds a known truth: MLPerf's null system.

In process: one reading of an engine that does nothing, made, checked, stored and written, over
its tokens. Behind a pipe: what a call to an engine's process takes beyond what the engine says.
Neither is inside TTFT or TPOT, whose clock runs in the engine's process.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from backends.mock.make import make_mock
from backends.mock.session import MockSession
from backends.mock.spec import MockSpec
from backends.process.client import open_in_process
from bench.clock import Clock
from bench.journal import Journal
from bench.measure import measure
from bench.parts import Frozen
from bench.readings import Reading
from bench.workloads import decode
from exporter.contract import Generation, Session

_TOKENS = 256
_REPEATS = 30
_RESTLESS = Clock(sleep=lambda seconds: None)


class Overhead(Frozen):
    """Seconds of the harness; truth: what a mock was set to, and what was measured of it."""

    per_token_in_process: float
    per_call_in_process: float
    per_call_behind_pipe: float
    ttft_set: float
    ttft_found: float
    tpot_set: float
    tpot_found: float

    @property
    def ttft_error(self) -> float:
        """Relative."""
        return abs(self.ttft_found / self.ttft_set - 1)

    @property
    def tpot_error(self) -> float:
        """Relative."""
        return abs(self.tpot_found / self.tpot_set - 1)


class _Null(MockSession):
    """An engine that answers at once, with times made beforehand."""

    def __init__(self) -> None:
        super().__init__(MockSpec(ttft_ms=0, tpot_ms=0))
        self._answer = Generation((0,) * _TOKENS, tuple(1e-9 * (i + 1) for i in range(_TOKENS)))

    def generate(self, tokens: object, n: int) -> Generation:
        """No work at all."""
        return self._answer


def measure_overhead(ttft_ms: float = 20.0, tpot_ms: float = 5.0, rounds: int = 9) -> Overhead:
    """Medians, on this machine as it is now."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        call = statistics.median(_reading(_Null(), Journal(root / "j", {}), _REPEATS))
        pipe, found = _behind_pipe(root, ttft_ms, tpot_ms, rounds)
    return Overhead(
        per_token_in_process=call / _TOKENS,
        per_call_in_process=call,
        per_call_behind_pipe=pipe,
        ttft_set=ttft_ms * 1e-3,
        tpot_set=tpot_ms * 1e-3,
        ttft_found=statistics.median(r.ttft or 0 for r in found),
        tpot_found=statistics.median(r.tpot or 0 for r in found),
    )


def _reading(session: Session, journal: Journal, repeats: int) -> list[float]:
    workload = decode(1, 16, _TOKENS)
    prompts = workload.sequences(64, 0)
    times: list[float] = []
    for i in range(repeats):
        start = time.perf_counter()
        prefill, sequences = measure(session, workload, prompts, _RESTLESS)
        journal.add(_as_reading(i, prefill, sequences))
        times.append(time.perf_counter() - start)
    journal.close()
    return times


def _behind_pipe(
    root: Path, ttft_ms: float, tpot_ms: float, rounds: int
) -> tuple[float, list[Reading]]:
    make_mock(root / "mock", MockSpec(ttft_ms=ttft_ms, tpot_ms=tpot_ms))
    session = open_in_process("mock", root / "mock")
    workload = decode(1, 16, 32)
    prompts = workload.sequences(64, 0)
    costs: list[float] = []
    found: list[Reading] = []
    try:
        for i in range(rounds):
            start = time.perf_counter()
            prefill, sequences = measure(session, workload, prompts, _RESTLESS)
            costs.append(time.perf_counter() - start - sequences[0][-1])
            found.append(_as_reading(i, prefill, sequences))
    finally:
        session.close()
    return statistics.median(costs), found


def _as_reading(number: int, prefill: float | None, sequences: list[list[float]]) -> Reading:
    return Reading(
        process=0, round=number, side="base", first=True, workload="decode-b1",
        prefill_seconds=prefill, sequences=sequences,
    )  # fmt: skip
