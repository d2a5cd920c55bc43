"""A Session that answers from a table, at times that are set.

Logits are a row of a fixed random table, chosen by the sum of all tokens so far: a cache that is
not read or not emptied shows. Times are kept against the clock, not added up from sleeps, so that
an overslept step does not shift those after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from backends.mock.spec import MockSpec
from exporter.contract import Facts, Generation
from exporter.errors import EngineUnfit
from exporter.store.dtypes import F32

VOCAB = 64
_TABLE = np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)
_COLUMNS = 1024
_SPIN_SECONDS = 0.0015  # a sleep may end this much late
_BATCH_COST = 0.1  # of a step, for each further sequence


class MockSession:
    """The engine of `MockSpec`, in this process."""

    def __init__(self, spec: MockSpec) -> None:
        if spec.fail == "missing":
            raise EngineUnfit("engine-missing", "this mock plays an engine that is not installed")
        self._spec = spec
        self._draw = np.random.default_rng(spec.seed)
        self._process = float(np.exp(spec.process_noise * self._draw.normal()))
        rows = max(1, spec.kept_bytes // (4 * _COLUMNS)) if spec.work == "gemv" else 0
        self._weights = np.full((rows, _COLUMNS), 0.5, dtype=np.float32)
        self._vector = np.ones(_COLUMNS, dtype=np.float32)
        self._sum = 0
        self.max_batch = spec.max_batch
        self.max_tokens = spec.max_tokens

    def prefill(self, tokens: Sequence[int], *, logits: Literal["all", "last"] = "all") -> F32:
        """As `Session.prefill`, in the set TTFT."""
        start = time.perf_counter()
        sums = np.cumsum(np.asarray(tokens, dtype=np.int64))
        self._sum = int(sums[-1])
        rows = _TABLE[(sums if logits == "all" else sums[-1:]) % VOCAB] + np.float32(
            self._spec.wrong
        )
        self._wait(start + self._ttft())
        return rows

    def decode(self, token: int) -> F32:
        """As `Session.decode`, in one step's time."""
        start = time.perf_counter()
        self._sum += token
        row = _TABLE[self._sum % VOCAB] + np.float32(self._spec.wrong)
        self._wait(start + self._steps(1, 1)[0])
        return row

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        """As `Session.generate`."""
        return self.generate_batch([tokens], n)[0]

    def generate_batch(self, prompts: Sequence[Sequence[int]], n: int) -> list[Generation]:
        """As `Batches.generate_batch`: all sequences step together."""
        start = time.perf_counter()
        if self._spec.fail == "crash":
            os._exit(1)
        due = self._ttft() + np.concatenate(([0.0], np.cumsum(self._steps(n - 1, len(prompts)))))
        sums = [int(np.sum(p)) for p in prompts]
        made: list[list[int]] = [[] for _ in prompts]
        seconds: list[float] = []
        for moment in due:
            for i, tokens in enumerate(made):
                tokens.append(int(_TABLE[sums[i] % VOCAB].argmax()))
                sums[i] += tokens[-1]
            self._wait(start + float(moment))
            seconds.append(time.perf_counter() - start)
        return [Generation(tuple(tokens), tuple(seconds)) for tokens in made]

    def facts(self) -> Facts:
        """What runs here."""
        return Facts("mock", "1", 1, 1.0, self._spec.kept_bytes, 0, 0.0)

    def close(self) -> None:
        """Nothing to end."""

    def _ttft(self) -> float:
        return self._spec.ttft_ms * 1e-3 * self._process * self._spec.slowdown

    def _steps(self, count: int, batch: int) -> np.ndarray:
        noise = np.exp(self._spec.step_noise * self._draw.normal(size=count))
        step = self._spec.step_seconds * (1 + _BATCH_COST * (batch - 1))
        return step * self._process * noise

    def _wait(self, until: float) -> None:
        """Work or wait until a moment of `time.perf_counter`; work may take longer."""
        if len(self._weights):
            _ = self._weights @ self._vector
        rest = until - time.perf_counter() - _SPIN_SECONDS
        if rest > 0:
            time.sleep(rest)
        while time.perf_counter() < until:
            pass
