"""Figures of one side from its raw lines: medians by process, percentiles, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.artefacts import Artefact
from bench.blocks import left_out, side_blocks
from bench.comparison import Figure, SideInfo, WorkloadFigures
from bench.decide.percentiles import percentiles
from bench.journal import Line
from bench.readings import ProcessLine, Reading, Side
from bench.stats import median_interval
from bench.workloads import Workload

NOT_RUN = "not measured by this workload"


def side_info(artefact: Artefact, lines: Sequence[Line], side: Side) -> SideInfo:
    """The artefact and its engine over all its processes."""
    mine = [p for p in lines if isinstance(p, ProcessLine) and p.side == side]
    tests = [p.selftest for p in mine if p.selftest is not None]
    gpu = [p.peak_gpu_bytes for p in mine if p.peak_gpu_bytes is not None]
    return SideInfo(
        label=artefact.label,
        target=artefact.target.name,
        options=dict(artefact.options),
        manifest_sha256=artefact.manifest_sha256,
        artefact_bytes=artefact.nbytes,
        engine=mine[0].engine,
        engine_version=mine[0].engine_version,
        threads=mine[0].threads,
        ops_share=mine[0].ops_share,
        weight_bytes=mine[0].weight_bytes,
        peak_rss_bytes=max(p.peak_rss_bytes for p in mine),
        peak_gpu_bytes=max(gpu) if gpu else None,
        load_seconds=statistics.median(p.load_seconds for p in mine),
        selftest_error=tests[0].max_rel_error if tests else None,
        processes=len(mine),
    )


def all_figures(
    lines: Sequence[Line], workloads: Sequence[Workload], side: Side, info: SideInfo
) -> list[WorkloadFigures]:
    """Each workload's figures; one that was not run has none, and says why."""
    reasons = left_out(lines, workloads)
    return [
        WorkloadFigures(
            workload=w.name,
            gate=w.gate,
            batch=w.batch,
            prompt_tokens=w.prompt_tokens,
            new_tokens=w.new_after,
            figures=[] if w.name in reasons else _figures(lines, w, side, info),
            left_out=reasons.get(w.name, ""),
        )
        for w in workloads
    ]


def _figures(lines: Sequence[Line], workload: Workload, side: Side, info: SideInfo) -> list[Figure]:
    mine = [r for r in lines if isinstance(r, Reading)]
    mine = [r for r in mine if r.side == side and r.workload == workload.name]

    def seconds(metric: str) -> Figure:
        return _seconds(lines, mine, workload, metric, side)

    tpot, prefill, e2e = seconds("tpot"), seconds("prefill"), seconds("e2e")
    fed, made = workload.prompt_tokens, workload.batch * workload.new_after
    return [
        seconds("ttft"),
        tpot,
        _itl(mine),
        e2e,
        prefill,
        _rate(prefill, "prefill_tokens_per_second", "tokens/s", fed),
        _rate(tpot, "decode_tokens_per_second", "tokens/s", workload.batch),
        _rate(e2e, "requests_per_second", "1/s", workload.batch),
        _goodput(mine, workload),
        _rate(tpot, "weight_bandwidth", "GB/s", info.weight_bytes * 1e-9),
        _energy(mine, made or fed),
    ]


def _seconds(
    lines: Sequence[Line], mine: Sequence[Reading], workload: Workload, metric: str, side: Side
) -> Figure:
    values = [v for r in mine if (v := r.value(metric)) is not None]
    if not values:
        return _missing(metric, "s", NOT_RUN)
    blocks = side_blocks(lines, workload.name, metric, side)
    interval = median_interval([statistics.median(b) for b in blocks], workload.seed)
    return Figure(
        metric=metric,
        unit="s",
        value=interval.median,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        percentiles=percentiles(values),
    )


def _itl(mine: Sequence[Reading]) -> Figure:
    gaps = [gap for reading in mine for gap in reading.itl]
    if not gaps:
        return _missing("itl", "s", NOT_RUN)
    found = percentiles(gaps)
    p50 = found[0]
    return Figure(
        metric="itl", unit="s", value=statistics.median(gaps), low=p50.low, high=p50.high,
        n=len(gaps), percentiles=found,
    )  # fmt: skip


def _rate(of: Figure, metric: str, unit: str, amount: float) -> Figure:
    """`amount` over seconds; the interval turns round."""
    if of.value is None or of.low is None or of.high is None:
        return _missing(metric, unit, of.why)
    if not amount:
        return _missing(metric, unit, "the engine does not tell its bytes")
    low, high = amount / of.high, amount / of.low
    return Figure(metric=metric, unit=unit, value=amount / of.value, low=low, high=high, n=of.n)


def _goodput(mine: Sequence[Reading], workload: Workload) -> Figure:
    """Requests a second that kept the objective, of those that were sent one after another."""
    limits = (("ttft", workload.slo_ttft_ms), ("tpot", workload.slo_tpot_ms))
    asked = [(metric, ms * 1e-3) for metric, ms in limits if ms is not None]
    if not asked:
        return _missing("goodput", "1/s", "no objective was set")
    total = sum(r.e2e or 0.0 for r in mine)
    if not total:
        return _missing("goodput", "1/s", NOT_RUN)
    good = sum(all((r.value(m) or 0.0) <= s for m, s in asked) for r in mine)
    return _point("goodput", "1/s", good * workload.batch / total, len(mine))


def _energy(mine: Sequence[Reading], tokens: int) -> Figure:
    joules = [r.energy_joules for r in mine if r.energy_joules is not None]
    if not joules or not tokens:
        return _missing("energy_per_token", "J", "no RAPL or NVML meter can be read here")
    return _point("energy_per_token", "J", statistics.median(joules) / tokens, len(joules))


def _point(metric: str, unit: str, value: float, n: int) -> Figure:
    return Figure(metric=metric, unit=unit, value=value, low=None, high=None, n=n)


def _missing(metric: str, unit: str, why: str) -> Figure:
    return Figure(metric=metric, unit=unit, value=None, low=None, high=None, n=0, why=why)
