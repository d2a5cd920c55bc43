"""Readings sorted into blocks: the seconds of one figure, by side and process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.journal import Line
from bench.readings import ProcessLine, Reading, Side
from bench.workloads import Workload, why_not

Table = list[list[float]]


def side_blocks(lines: Iterable[Line], workload: str, metric: str, side: Side) -> Table:
    """Seconds by process, in order. One process alone: its rounds stand for processes.

    That says less (one memory layout, one start), and a note of the result says so.
    """
    found: dict[int, list[float]] = {}
    for line in lines:
        if isinstance(line, Reading) and line.side == side and line.workload == workload:
            value = line.value(metric)
            if value is not None:
                found.setdefault(line.process, []).append(value)
    table = [found[process] for process in sorted(found)]
    return [[value] for value in table[0]] if len(table) == 1 else table


def blocks_of(lines: Iterable[Line], workload: str, metric: str) -> tuple[Table, Table]:
    """Both sides' seconds by process."""
    kept = list(lines)
    return side_blocks(kept, workload, metric, "base"), side_blocks(kept, workload, metric, "new")


def gated(lines: Sequence[Line], workloads: Sequence[Workload]) -> list[Workload]:
    """The workloads that were run."""
    run = {line.workload for line in lines if isinstance(line, Reading)}
    return [w for w in workloads if w.name in run]


def left_out(lines: Sequence[Line], workloads: Sequence[Workload]) -> dict[str, str]:
    """Workloads that no session could run, and why."""
    processes = [line for line in lines if isinstance(line, ProcessLine)]
    if not processes:
        return {}
    tokens, batches = ([getattr(p, k) for p in processes] for k in ("max_tokens", "max_batch"))
    reasons = {w.name: why_not(w, tokens, batches) for w in workloads}
    return {name: reason for name, reason in reasons.items() if reason is not None}
