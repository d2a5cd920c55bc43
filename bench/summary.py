"""From raw rounds to the figures of a side, the speedups, and what a reader must be told."""

from __future__ import annotations

from collections.abc import Sequence

from bench.artefacts import Artefact
from bench.results import Fingerprint, Interval, Round, Sample, SelfTest, Side, Speedups
from bench.stats import MIN_ROUNDS, median_interval, paired_speedup
from bench.workloads import Workload
from exporter.contract import Facts


def side_of(
    artefact: Artefact,
    facts: Facts,
    selftest: SelfTest,
    samples: Sequence[Sample],
    workload: Workload,
    seed: int,
) -> Side:
    """One artefact's facts and medians."""
    prompt = workload.prompt_tokens
    return Side(
        label=artefact.label,
        target=artefact.target.name,
        options=dict(artefact.options),
        manifest_sha256=artefact.manifest_sha256,
        artefact_bytes=artefact.nbytes,
        engine=facts.engine,
        engine_version=facts.version,
        threads=facts.threads,
        ops_share=facts.ops_share,
        weight_bytes=facts.weight_bytes,
        peak_rss_bytes=facts.peak_rss_bytes,
        load_seconds=facts.load_seconds,
        selftest=selftest,
        decode_tokens_per_second=median_interval([1 / s.tpot for s in samples], seed),
        prefill_tokens_per_second=median_interval(
            [prompt / s.prefill_seconds for s in samples], seed
        ),
        ttft_seconds=median_interval([s.ttft for s in samples], seed),
        tpot_seconds=median_interval([s.tpot for s in samples], seed),
    )


def speedups_of(rounds: Sequence[Round], seed: int) -> Speedups:
    """Paired ratios, dense seconds over sparse seconds."""
    dense, sparse = [r.dense for r in rounds], [r.sparse for r in rounds]
    return Speedups(
        decode=paired_speedup([s.tpot for s in dense], [s.tpot for s in sparse], seed),
        prefill=paired_speedup(
            [s.prefill_seconds for s in dense], [s.prefill_seconds for s in sparse], seed
        ),
        ttft=paired_speedup([s.ttft for s in dense], [s.ttft for s in sparse], seed),
    )


def notes_on(dense: Side, sparse: Side, speedup: Speedups, machine: Fingerprint) -> list[str]:
    """What could mislead a reader of the figures."""
    notes: list[str] = []
    if not speedup.decode.supported:
        notes.append(
            f"{speedup.decode.n} rounds: under {MIN_ROUNDS} no 95 % interval exists; "
            "the ranges shown are those of the rounds."
        )
    for name in ("decode", "prefill", "ttft"):
        interval: Interval = getattr(speedup, name)
        if interval.outliers:
            rounds = ", ".join(str(i + 1) for i in interval.outliers)
            notes.append(f"{name}: outlying round(s) {rounds}; kept in all figures.")
    for what in ("threads", "engine_version", "options"):
        a, b = getattr(dense, what), getattr(sparse, what)
        if a != b:
            notes.append(f"The sides differ in {what.replace('_', ' ')}: {a} and {b}.")
    for side in (dense, sparse):
        if side.ops_share is not None and side.ops_share < 1.0:
            notes.append(f"{side.label}: the engine ran only {side.ops_share:.1%} of its ops.")
    if machine.load_at_start is not None and machine.load_at_start > 0.5 * machine.cores_usable:
        notes.append(f"The machine was busy: load {machine.load_at_start} at the start.")
    return notes
