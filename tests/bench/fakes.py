"""A session of known speed on a clock that only moves when told, and artefact folders for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.artefacts import Artefact
from bench.clock import Clock
from bench.results import AbResult
from exporter.contract import Facts, Generation, Tolerance
from exporter.verify.prompts import Prompts
from exporter.verify.selftest import SelfTest, record

Measure = Callable[..., AbResult]
VOCAB = 11
TABLE = np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)


class VirtualTime:
    """Seconds that pass only through `spend`."""

    def __init__(self) -> None:
        self.now = 0.0

    def spend(self, seconds: float) -> None:
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.spend)


@dataclass
class Speed:
    """What a session costs; `factor(call)` slows the n-th timed generation."""

    ttft: float
    tpot: float
    slow_calls: dict[int, float] = field(default_factory=dict)


class ToySession:
    """Logits are a row of a table, chosen by the sum of all tokens; time is virtual."""

    def __init__(
        self, time: VirtualTime, speed: Speed, *, wrong: float = 0.0, max_tokens: int = 256
    ) -> None:
        self.time, self.speed, self.wrong = time, speed, wrong
        self.max_tokens = max_tokens
        self.calls: list[str] = []
        self.generated = 0
        self.closed = 0
        self._sum = 0

    def prefill(self, tokens: Sequence[int], *, logits: str = "all") -> Any:
        self.calls.append("prefill")
        self.time.spend(self.speed.ttft)
        sums = np.cumsum(tokens)
        self._sum = int(sums[-1])
        rows = TABLE[sums % VOCAB] + np.float32(self.wrong)
        return rows if logits == "all" else rows[-1:]

    def decode(self, token: int) -> Any:
        self.time.spend(self.speed.tpot)
        self._sum += token
        return TABLE[self._sum % VOCAB] + np.float32(self.wrong)

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        self.calls.append("generate")
        factor = self.speed.slow_calls.get(self.generated, 1.0)
        self.generated += 1
        made: list[int] = []
        total = int(np.sum(tokens))
        for _ in range(n):
            made.append(int(TABLE[total % VOCAB].argmax()))
            total += made[-1]
        steps = [self.speed.ttft] + [self.speed.tpot * factor] * (n - 1)
        seconds = np.cumsum(steps)
        self.time.spend(float(seconds[-1]))
        return Generation(tuple(made), tuple(float(s) for s in seconds))

    def facts(self) -> Facts:
        return Facts("toy", "1", 1, 1.0, 100, 1000, 0.5)

    def close(self) -> None:
        self.closed += 1


def toy_selftest() -> SelfTest:
    """What a sound toy session answers."""

    class Nowhere:
        def begin_prompt(self) -> None: ...
        def add(self, logits: Any) -> None: ...

    reference = ToySession(VirtualTime(), Speed(1, 1))
    return record(reference, Prompts(((1, 2, 3), (4, 5)), 4, "random ids"), Nowhere())


def toy_artefact(folder: Path, name: str = "toy") -> Path:
    """A folder as the benchmark's fakes read it: 1,000 bytes of layout and a manifest."""
    meta = folder / ".sparse-export"
    meta.mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(1000))
    (meta / "manifest.json").write_text(json.dumps({"target": {"name": name, "options": {}}}))
    return folder


def read_toy_manifest(folder: Path) -> Any:
    """Stands for `read_manifest`."""
    raw = json.loads((folder / ".sparse-export" / "manifest.json").read_text())
    return SimpleNamespace(target=SimpleNamespace(**raw["target"]))


def load_toy_target(name: str, options: Any = None) -> Any:
    """Stands for `load_target`."""
    return SimpleNamespace(name=name, tolerance=Tolerance(1e-3))


@dataclass
class Opener:
    """Gives the session of each folder's name, and keeps it."""

    time: VirtualTime
    sessions: dict[str, ToySession]

    def __call__(self, artefact: Artefact, threads: int | None) -> ToySession:
        return self.sessions[artefact.label]


def digest(folder: Path) -> str:
    """SHA-256 of the manifest's bytes."""
    return hashlib.sha256((folder / ".sparse-export" / "manifest.json").read_bytes()).hexdigest()
