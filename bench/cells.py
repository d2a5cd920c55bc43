"""Both sides' raw lines made into judged cells, and cells into a decision."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.blocks import Table, blocks_of, gated
from bench.comparison import Again, Cell, Decision, Status
from bench.decide.ranks import mann_whitney
from bench.decide.ratio import pair_ratios
from bench.decide.rule import Judged, Rule, confirm, judge_cells, worst
from bench.journal import Line
from bench.stats import find_outliers
from bench.verdict import Exit
from bench.workloads import Workload

_WORDS = {
    "same": "no change beyond {effect:.0%}",
    "slower": "slower, in the re-run too",
    "faster": "faster",
    "near": "within reach of {effect:.0%}, not beyond it",
    "noisy": "too noisy to decide",
    "unconfirmed": "slower once; the re-run does not agree",
}


@dataclass(frozen=True)
class First:
    """Cells of the first measurement, before any re-run."""

    workloads: list[Workload]
    blocks: list[tuple[Table, Table]]
    judged: list[Judged]

    def suspects(self) -> list[Workload]:
        """Those that only a re-run can decide."""
        return [w for w, j in zip(self.workloads, self.judged, strict=True) if j.status == "slower"]


def judge_lines(
    lines: Sequence[Line], workloads: Sequence[Workload], rule: Rule, *, paired: bool, seed: int
) -> First:
    """Every workload that was run, by its gate."""
    run = gated(lines, workloads)
    blocks = [blocks_of(lines, w.name, w.gate) for w in run]
    return First(run, blocks, judge_cells(blocks, rule, paired=paired, seed=seed))


def make_cells(
    first: First, again: First | None, rule: Rule, *, paired: bool, gate: bool = True
) -> list[Cell]:
    """The cells as they are told: status after the re-run, in words.

    Without a gate nothing is to be confirmed: the status is that of the first measurement.
    """
    second = {} if again is None else dict(
        zip((w.name for w in again.workloads), again.judged, strict=True)
    )  # fmt: skip
    return [
        _cell(w, b, j, second.get(w.name), rule, paired, gate)
        for w, b, j in zip(first.workloads, first.blocks, first.judged, strict=True)
    ]


def decide(cells: Sequence[Cell], *, gate: bool = True) -> Decision:
    """Exit 1 for a confirmed regression, 4 where noise hides one, else 0."""
    if not gate:
        return Decision(status="no-gate", exit_code=Exit.FINE, reason="no limit was asked for")
    status = worst([cell.status for cell in cells])
    named = "; ".join(f"{c.workload}: {c.reason}" for c in cells if c.status == status)
    if status == "slower":
        return Decision(status="regression", exit_code=Exit.REGRESSION, reason=named)
    if status == "noisy":
        return Decision(status="undecided", exit_code=Exit.UNDECIDED, reason=named)
    if status == "unconfirmed":
        return Decision(status="unconfirmed", exit_code=Exit.FINE, reason=named)
    return Decision(status="passed", exit_code=Exit.FINE, reason=named)


def _cell(
    workload: Workload,
    blocks: tuple[Table, Table],
    judged: Judged,
    second: Judged | None,
    rule: Rule,
    paired: bool,
    gate: bool,
) -> Cell:
    status: Status = judged.status
    if judged.status == "slower" and gate:
        # Without a re-run a suspicion stays one: it is not decided.
        status = confirm("slower", second.status) if second else "noisy"
    base, new = blocks
    ratio = judged.ratio
    return Cell(
        workload=workload.name,
        metric=workload.gate,
        base=_median(base),
        new=_median(new),
        ratio=ratio.value,
        low=ratio.low,
        high=ratio.high,
        confidence=ratio.confidence,
        blocks=ratio.blocks,
        supported=ratio.supported,
        p=judged.p,
        p_holm=judged.p_holm,
        mann_whitney_p=mann_whitney(base, new),
        status=status,
        reason=_reason(judged, second, status, rule, gate),
        rerun=None if second is None else _again(second),
        outliers=_outliers(base, new, paired),
    )


def _reason(judged: Judged, second: Judged | None, status: Status, rule: Rule, gate: bool) -> str:
    r = judged.ratio
    words = _WORDS[status].format(effect=rule.min_effect)
    if judged.status == "slower" and second is None:
        words = "slower once, and not measured again" if gate else "slower"
    if not r.supported:
        words = f"{r.blocks} processes are too few to decide"
    text = f"{(r.value - 1):+.1%} time [{r.low - 1:+.1%}, {r.high - 1:+.1%}]"
    more = f", re-run {second.ratio.value - 1:+.1%}" if second else ""
    return f"{text}, p {judged.p_holm:.2g}{more}: {words}"


def _again(second: Judged) -> Again:
    r = second.ratio
    return Again(ratio=r.value, low=r.low, high=r.high, p=second.p_holm)


def _outliers(base: Table, new: Table, paired: bool) -> list[str]:
    if paired:
        found = find_outliers(pair_ratios(base, new))
        return [f"pair {i + 1}" for i in found]
    return [
        f"{name} process {i + 1}"
        for name, side in (("base", base), ("new", new))
        for i in find_outliers(np.array([statistics.median(b) for b in side]))
    ]


def _median(blocks: Table) -> float:
    return statistics.median(value for block in blocks for value in block)
