"""Every figure of a result as one flat table, from which the machine-readable forms are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.comparison import CompareResult, Figure, RunResult, SideInfo, WorkloadFigures

Result = RunResult | CompareResult


@dataclass(frozen=True)
class Row:
    """One figure of one side."""

    side: str  # "base", "new"; of a run "base"
    label: str
    workload: str  # empty: of the artefact
    metric: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""


def sides(result: Result) -> list[tuple[str, SideInfo, list[WorkloadFigures]]]:
    """Name, facts and figures of each side."""
    if isinstance(result, RunResult):
        return [("base", result.side, result.workloads)]
    return [
        ("base", result.base, result.base_workloads),
        ("new", result.new, result.new_workloads),
    ]


def rows(result: Result) -> Iterator[Row]:
    """Facts of each side, then each workload's figures and their percentiles."""
    for name, info, workloads in sides(result):
        for metric, unit, value, why in facts(info):
            yield Row(name, info.label, "", metric, unit, value, note=why)
        for workload in workloads:
            for figure in workload.figures:
                yield from _figure_rows(name, info.label, workload.workload, figure)
            if workload.left_out:
                yield Row(name, info.label, workload.workload, workload.gate, "s", None,
                          note=workload.left_out)  # fmt: skip


def facts(info: SideInfo) -> list[tuple[str, str, float | None, str]]:
    """(metric, unit, value, why not) of an artefact and its engine."""
    no_gpu = "" if info.peak_gpu_bytes is not None else "NVML finds no GPU here"
    no_bytes = "" if info.weight_bytes else "the engine does not tell"
    no_share = "" if info.ops_share is not None else "the engine does not tell"
    return [
        ("load", "s", info.load_seconds, ""),
        ("peak_rss", "bytes", float(info.peak_rss_bytes), ""),
        ("peak_gpu", "bytes", _float(info.peak_gpu_bytes), no_gpu),
        ("artefact", "bytes", float(info.artefact_bytes), ""),
        ("weights_per_token", "bytes", float(info.weight_bytes) or None, no_bytes),
        ("ops_share", "", info.ops_share, no_share),
    ]


def _figure_rows(side: str, label: str, workload: str, f: Figure) -> Iterator[Row]:
    yield Row(side, label, workload, f.metric, f.unit, f.value, f.low, f.high, f.n, f.why)
    for p in f.percentiles:
        why = "" if p.value is not None else f"{p.n} values are too few"
        metric = f"{f.metric}_{p.text}"
        yield Row(side, label, workload, metric, f.unit, p.value, p.low, p.high, p.n, why)


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)
