"""One line of raw data: what one side did in one round, and what its process cost."""

from __future__ import annotations

import statistics
from typing import Literal

from pydantic import Field

from bench.parts import Frozen, SelfTest

Side = Literal["base", "new"]


class Reading(Frozen):
    """One workload, once, on one side."""

    line: Literal["reading"] = "reading"
    run: int = Field(default=0, description="0, or 1 in the independent re-run")
    process: int = Field(description="which pair of fresh processes")
    round: int = Field(description="counted within the process")
    side: Side
    first: bool = Field(description="whether this side ran before the other")
    workload: str
    prefill_seconds: float | None = Field(description="the prompt alone, timed by the caller")
    sequences: list[list[float]] = Field(
        description="for each sequence, when each new token came, seconds since the call"
    )
    energy_joules: float | None = Field(
        default=None, description="of the whole machine meanwhile; null where no meter is read"
    )

    @property
    def ttft(self) -> float | None:
        """Mean over the sequences of the time to the first new token, seconds."""
        return _mean([s[0] for s in self.sequences])

    @property
    def tpot(self) -> float | None:
        """Mean over the sequences of the time per new token after the first, seconds."""
        return _mean([(s[-1] - s[0]) / (len(s) - 1) for s in self.sequences if len(s) > 1])

    @property
    def e2e(self) -> float | None:
        """Until the last token of the last sequence, seconds."""
        return max((s[-1] for s in self.sequences), default=None)

    @property
    def itl(self) -> list[float]:
        """Every gap between two tokens of one sequence, seconds."""
        return [b - a for s in self.sequences for a, b in zip(s, s[1:], strict=False)]

    def value(self, metric: str) -> float | None:
        """Seconds of "ttft", "tpot", "e2e", "prefill", or the median of "itl".

        The median gap is what decode is judged by: on a shared machine a few tokens wait for
        another program's time slice, which is in their mean and not in their median.
        """
        if metric == "itl":
            return statistics.median(self.itl) if self.itl else None
        return self.prefill_seconds if metric == "prefill" else getattr(self, metric)


class ProcessLine(Frozen):
    """What one engine process was, beside its readings."""

    line: Literal["process"] = "process"
    run: int = 0
    process: int
    side: Side
    engine: str
    engine_version: str
    threads: int
    ops_share: float | None
    weight_bytes: int
    peak_rss_bytes: int
    peak_gpu_bytes: int | None = Field(description="null where NVML does not tell")
    load_seconds: float
    warmup_rounds: int
    warmup_seconds: float
    warm: bool = Field(description="whether the times had settled when the warm-up ended")
    stolen: float | None = Field(
        default=None,
        description="share of the CPU time wanted while timed that a virtual machine's host gave "
        "to others, 0 to 1, whole machine; null where the system does not tell",
    )
    max_tokens: int
    max_batch: int
    selftest: SelfTest | None = Field(description="in the first process of a run")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
