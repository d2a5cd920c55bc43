"""Toy engines whose speed may differ from process to process, on virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bench.artefacts import Artefact
from bench.decide.rule import Rule
from bench.flow import How, Keep
from bench.pairs import Plan
from bench.warmup import Bounds
from bench.workloads import Workload, decode, mixed, prefill
from tests.bench.fakes import Speed, ToySession, VirtualTime

Factor = Callable[[int], float]  # number of the opening on that side -> times slower
SMALL = (decode(1, 16, 8), prefill(32), mixed(24, 8))


@dataclass
class Fleet:
    """An opener: each opening is another process, `slow[label](number)` times slower."""

    slow: dict[str, Factor] = field(default_factory=dict)
    time: VirtualTime = field(default_factory=VirtualTime)
    opened: list[str] = field(default_factory=list)
    stop_at: int | None = None  # interrupted when that many have been opened

    def __call__(self, artefact: Artefact, threads: int | None) -> ToySession:
        if self.stop_at is not None and len(self.opened) >= self.stop_at:
            raise KeyboardInterrupt
        number = self.opened.count(artefact.label)
        self.opened.append(artefact.label)
        factor = self.slow.get(artefact.label, lambda n: 1.0)(number)
        # Equal values would be ties everywhere: a breath of noise, the same in each test.
        breath = 1 + 1e-4 * ((len(self.opened) * 7919) % 11)
        speed = Speed(0.040 * factor * breath, 0.005 * factor * breath)
        return ToySession(self.time, speed)

    def how(self, workloads: tuple[Workload, ...] = SMALL, **more: object) -> How:
        """Eight processes of two rounds, no more where they are not enough."""
        plan = Plan(workloads, processes=8, most=8, rounds=(2,), warmup=Bounds(least=1))
        how = How(plan, Rule(), opener=self, clock=self.time.clock)
        return replace(how, **more)  # type: ignore[arg-type]


def keep_at(path: object, *, resume: bool = False) -> Keep:
    """Samples in a file."""
    return Keep(path, resume)  # type: ignore[arg-type]
