"""From raw rounds to the figures of a side, the speedups, and what a reader must be told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from bench.artefacts import Artefact
from bench.comparison import SideInfo
from bench.notes import machine_notes
from bench.results import Fingerprint, Interval, Round, Sample, SelfTest, Side, Speedups
from bench.stats import MIN_ROUNDS, median_interval, speedup_interval
from bench.workloads import Workload


def side_of(
    artefact: Artefact, info: SideInfo, selftest: SelfTest, rounds: Sequence[Round], which: str,
    workload: Workload,
) -> Side:  # fmt: skip
    """One artefact's facts and medians; `which` is "dense" or "sparse"."""
    prompt, seed = workload.prompt_tokens, workload.seed

    def interval(figure: Callable[[Sample], float]) -> Interval:
        blocks = by_process(rounds, which, figure)
        return median_interval([statistics.median(block) for block in blocks], seed)

    return Side(
        label=info.label,
        target=info.target,
        options=dict(artefact.options),
        manifest_sha256=info.manifest_sha256,
        artefact_bytes=info.artefact_bytes,
        engine=info.engine,
        engine_version=info.engine_version,
        threads=info.threads,
        ops_share=info.ops_share,
        weight_bytes=info.weight_bytes,
        peak_rss_bytes=info.peak_rss_bytes,
        load_seconds=info.load_seconds,
        selftest=selftest,
        decode_tokens_per_second=interval(lambda s: 1 / s.tpot),
        prefill_tokens_per_second=interval(lambda s: prompt / s.prefill_seconds),
        ttft_seconds=interval(lambda s: s.ttft),
        tpot_seconds=interval(lambda s: s.tpot),
    )


def by_process(
    rounds: Sequence[Round], which: str, figure: Callable[[Sample], float]
) -> list[list[float]]:
    """A figure of one side by process; of one process alone, each round by itself."""
    found: dict[int, list[float]] = {}
    for one in rounds:
        found.setdefault(one.process, []).append(figure(getattr(one, which)))
    table = list(found.values())
    return [[value] for value in table[0]] if len(table) == 1 else table


def speedups_of(rounds: Sequence[Round], seed: int) -> Speedups:
    """Paired ratios, dense seconds over sparse seconds."""

    def speedup(figure: Callable[[Sample], float]) -> Interval:
        dense, sparse = (by_process(rounds, which, figure) for which in ("dense", "sparse"))
        return speedup_interval(dense, sparse, seed)

    return Speedups(
        decode=speedup(lambda s: s.tpot),
        prefill=speedup(lambda s: s.prefill_seconds),
        ttft=speedup(lambda s: s.ttft),
    )


def notes_on(
    dense: Side, sparse: Side, speedup: Speedups, machine: Fingerprint, processes: int
) -> list[str]:
    """What could mislead a reader of the figures."""
    notes: list[str] = []
    block, blocks = ("round", "rounds") if processes == 1 else ("process", "processes")
    if not speedup.decode.supported:
        notes.append(
            f"{speedup.decode.n} {blocks}: under {MIN_ROUNDS} no 95 % interval exists; "
            f"the ranges shown are those of the {blocks}."
        )
    elif processes == 1:
        notes.append(
            "One process a side: the interval is of its rounds, and says nothing of what "
            "changes from start to start; give --processes."
        )
    for name in ("decode", "prefill", "ttft"):
        interval: Interval = getattr(speedup, name)
        if interval.outliers:
            rounds = ", ".join(str(i + 1) for i in interval.outliers)
            what = block if len(interval.outliers) == 1 else blocks
            notes.append(f"{name}: outlying {what} {rounds}; kept in all figures.")
    for what in ("threads", "engine_version", "options"):
        a, b = getattr(dense, what), getattr(sparse, what)
        if a != b:
            notes.append(f"The sides differ in {what.replace('_', ' ')}: {a} and {b}.")
    for side in (dense, sparse):
        if side.ops_share is not None and side.ops_share < 1.0:
            notes.append(f"{side.label}: the engine ran only {side.ops_share:.1%} of its ops.")
    return notes + machine_notes(machine)
