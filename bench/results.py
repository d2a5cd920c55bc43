"""The result of a benchmark as data: versioned, raw samples included, `AB_SCHEMA` exported.

All times are seconds, all sizes bytes. TTFT: from the call to the first new token, prefill
included. TPOT: mean time of each new token after the first. Both as in docs/reference/bench.md.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bench.comparison import CompareResult
from bench.parts import Fingerprint, Frozen, SelfTest

SCHEMA_VERSION = 1

__all__ = [
    "AbResult",
    "Fingerprint",
    "Frozen",
    "Interval",
    "Round",
    "Sample",
    "SelfTest",
    "Settings",
    "Side",
    "Speedups",
    "Verdict",
    "ab_schema",
]


class Interval(Frozen):
    """A median with its bootstrap interval; `supported` is False where n is too small for it."""

    median: float
    low: float
    high: float
    confidence: float
    n: int = Field(description="blocks: pairs of processes, or rounds where there was one")
    supported: bool
    outliers: list[int] = Field(
        description="blocks (processes, or rounds of one) named as outliers; they stay in"
    )


class Sample(Frozen):
    """One side of one round."""

    prefill_seconds: float = Field(description="prompt alone, last logits, timed by the caller")
    token_seconds: list[float] = Field(description="when each new token came, since the call")

    @property
    def ttft(self) -> float:
        """Time to first token, seconds."""
        return self.token_seconds[0]

    @property
    def tpot(self) -> float:
        """Time per output token after the first, mean, seconds."""
        return (self.token_seconds[-1] - self.token_seconds[0]) / (len(self.token_seconds) - 1)


class Round(Frozen):
    """Both sides, one after the other; A is dense, B is sparse."""

    order: Literal["AB", "BA"]
    process: int = Field(default=0, description="which pair of fresh processes ran it")
    dense: Sample
    sparse: Sample


class Side(Frozen):
    """One artefact, what ran it, and its figures over the rounds."""

    label: str
    target: str
    options: dict[str, Any]
    manifest_sha256: str
    artefact_bytes: int = Field(description="files of the engine's layout, as on disk")
    engine: str
    engine_version: str
    threads: int
    ops_share: float | None = Field(description="share of ops that the engine ran itself")
    weight_bytes: int
    peak_rss_bytes: int = Field(description="of the engine's process")
    load_seconds: float
    selftest: SelfTest
    decode_tokens_per_second: Interval
    prefill_tokens_per_second: Interval
    ttft_seconds: Interval
    tpot_seconds: Interval


class Speedups(Frozen):
    """Paired, dense seconds over sparse seconds: above 1 the sparse side is faster."""

    decode: Interval
    prefill: Interval
    ttft: Interval


class Verdict(Frozen):
    """What the exit code says, in words."""

    status: Literal["no-gate", "passed", "regression", "undecided", "unconfirmed"]
    exit_code: int
    reason: str
    min_speedup: float | None
    rerun: Interval | None = Field(default=None, description="decode speedup of the re-run")


class Settings(Frozen):
    """How it was run."""

    rounds: int
    processes: int = Field(default=1, description="pairs of fresh processes that ran them")
    warmup_rounds: int
    prompt_tokens: int
    new_tokens: int
    batch: Literal[1] = 1
    seed: int


class AbResult(Frozen):
    """Everything of one `sparse-bench ab`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["ab"] = "ab"
    title: str
    settings: Settings
    dense: Side
    sparse: Side
    speedup: Speedups
    verdict: Verdict
    notes: list[str]
    fingerprint: Fingerprint
    rounds: list[Round]
    comparison: CompareResult | None = Field(
        default=None, description="every workload, by the rule of `compare`"
    )


def ab_schema() -> dict[str, Any]:
    """JSON schema of `AbResult`."""
    return AbResult.model_json_schema(mode="serialization")
