"""Results of `run` and `compare` as data: versioned, with everything a reader needs to doubt them.

All times are seconds, all sizes bytes. A ratio is new over base seconds: above 1 is slower.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bench.decide.percentiles import Percentile
from bench.parts import Fingerprint, Frozen
from bench.readings import ProcessLine, Reading
from bench.workloads import Workload

SCHEMA_VERSION = 1
Status = Literal["same", "slower", "faster", "near", "noisy", "unconfirmed"]


class Figure(Frozen):
    """One metric of one workload; `value` is null where it is not available, `why` says why."""

    metric: str
    unit: str
    value: float | None = Field(description="median over the processes' medians")
    low: float | None
    high: float | None
    n: int = Field(description="processes, or rounds where there was one process")
    percentiles: list[Percentile] = []
    why: str = ""


class WorkloadFigures(Frozen):
    """One workload on one side."""

    workload: str
    gate: str = Field(description="the figure by which two sides are judged")
    batch: int
    prompt_tokens: int
    new_tokens: int
    figures: list[Figure]
    left_out: str = Field(default="", description="why it was not run; empty where it was")

    def figure(self, metric: str) -> Figure | None:
        """The figure of that name."""
        return next((f for f in self.figures if f.metric == metric), None)


class SideInfo(Frozen):
    """One artefact and what ran it."""

    label: str
    target: str
    options: dict[str, Any]
    manifest_sha256: str
    artefact_bytes: int
    engine: str
    engine_version: str
    threads: int
    ops_share: float | None
    weight_bytes: int
    peak_rss_bytes: int = Field(description="largest of its processes")
    peak_gpu_bytes: int | None
    load_seconds: float = Field(description="median of its processes")
    selftest_error: float | None
    processes: int


class RunSettings(Frozen):
    """How it was measured; two results are compared only where these agree."""

    workloads: list[Workload]
    rounds: list[int]
    seconds: float = Field(default=0.0, description="fewest, of each workload in each process")
    seed: int
    threads: int | None


class RunResult(Frozen):
    """Everything of one `sparse-bench run`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["run"] = "run"
    title: str
    time: str = Field(description="UTC, ISO 8601, when it was begun")
    settings: RunSettings
    side: SideInfo
    workloads: list[WorkloadFigures]
    notes: list[str]
    fingerprint: Fingerprint
    readings: list[Reading]
    processes: list[ProcessLine]


class Again(Frozen):
    """What the independent re-run said of a cell."""

    ratio: float
    low: float
    high: float
    p: float


class Cell(Frozen):
    """One workload, both sides, judged by its gate."""

    workload: str
    metric: str
    base: float = Field(description="median seconds")
    new: float
    ratio: float
    low: float
    high: float
    confidence: float
    blocks: int
    supported: bool
    p: float
    p_holm: float
    mann_whitney_p: float
    status: Status
    reason: str
    rerun: Again | None
    outliers: list[str] = Field(description="processes named as outliers; they stay in")


class RuleUsed(Frozen):
    """The rule of `bench.decide.rule`."""

    min_effect: float
    alpha: float
    precision: float
    confidence: float


class Decision(Frozen):
    """What the exit code says, in words."""

    status: Literal["no-gate", "passed", "regression", "undecided", "unconfirmed"]
    exit_code: int
    reason: str


class CompareResult(Frozen):
    """Everything of one comparison."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["compare"] = "compare"
    title: str
    paired: bool = Field(description="measured side by side, now; else from two files")
    rule: RuleUsed
    base: SideInfo
    new: SideInfo
    cells: list[Cell]
    left_out: dict[str, str]
    base_workloads: list[WorkloadFigures]
    new_workloads: list[WorkloadFigures]
    verdict: Decision
    notes: list[str]
    base_fingerprint: Fingerprint
    new_fingerprint: Fingerprint
    readings: list[Reading]
    processes: list[ProcessLine]


def schemas() -> dict[str, dict[str, Any]]:
    """JSON schemas by kind of result."""
    kinds: tuple[type[Frozen], ...] = (RunResult, CompareResult)
    return {k.__name__[:-6].lower(): k.model_json_schema(mode="serialization") for k in kinds}
