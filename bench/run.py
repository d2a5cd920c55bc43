"""`ab`: two artefacts of one target, outputs checked first, then timed in interleaved pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.artefacts import Artefact, open_artefact, require_pair
from bench.cells import judge_lines, make_cells
from bench.clock import REAL, Clock
from bench.comparison import CompareResult, Decision
from bench.decide.rule import Rule
from bench.extras import need
from bench.figures import all_figures, side_info
from bench.fingerprint import fingerprint
from bench.flow import How, Keep, rule_used, tools_of
from bench.journal import Line
from bench.notes import process_notes
from bench.pairs import Opener, Plan, Tools, measure_processes, open_session
from bench.readings import ProcessLine, Reading
from bench.results import AbResult, Fingerprint, Round, Sample, SelfTest, Settings, Verdict
from bench.summary import notes_on, side_of, speedups_of
from bench.verdict import judge, judge_again
from bench.warmup import Bounds
from bench.workloads import Workload
from exporter.contract import Progress
from exporter.errors import UsageError

__all__ = ["AbOptions", "ab", "open_session"]


@dataclass(frozen=True)
class AbOptions:
    """Everything that `sparse-bench ab` can be told.

    `rounds` are spread over `processes` pairs of fresh processes; up to `max_processes` are
    measured where these do not make the interval narrow. Fewer rounds than processes: as many
    processes as rounds, and no more.
    """

    rounds: int = 16
    warmup_rounds: int = 2  # at least; more until the times settle
    prompt_tokens: int = 128
    new_tokens: int = 64
    threads: int | None = None  # None: the engine's own choice
    min_speedup: float | None = None  # on decode
    seed: int = 0
    title: str = ""
    processes: int = 8
    max_processes: int = 24
    more: tuple[Workload, ...] = ()  # beside the one that is judged

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup_rounds < 0 or self.processes < 1:
            raise UsageError(
                "usage",
                f"{self.rounds} rounds, {self.warmup_rounds} of warm-up, "
                f"{self.processes} processes",
            )
        _ = self.workload  # refuses one that cannot be timed

    @property
    def workload(self) -> Workload:
        """The request that each round sends."""
        return Workload(self.prompt_tokens, self.new_tokens, self.seed)

    def plan(self) -> Plan:
        """Rounds spread over processes as evenly as can be, the last count for further ones."""
        processes = min(self.processes, self.rounds)
        each, rest = divmod(self.rounds, processes)
        further = processes == self.processes > 1
        return Plan(
            workloads=(self.workload, *self.more),
            processes=processes,
            most=max(processes, self.max_processes) if further else processes,
            rounds=tuple(each + (i < rest) for i in range(processes)),
            warmup=Bounds(least=self.warmup_rounds),
            threads=self.threads,
            seed=self.seed,
            strict=not self.more,
        )


def ab(
    dense: Path,
    sparse: Path,
    options: AbOptions | None = None,
    progress: Progress | None = None,
    *,
    opener: Opener = open_session,
    clock: Clock = REAL,
    keep: Keep | None = None,
) -> AbResult:
    """Compare two artefacts of one target.

    Raises:
        VerificationFailed: `outputs-differ`, before anything is timed.
        UsageError, InputRefused: wrong folders or a workload too long for them.
        EngineUnfit: an engine is missing, unfit, or broke.
    """
    options = options or AbOptions()
    need("scipy.stats")  # now, not after minutes of measuring
    machine = fingerprint(ceiling=True)
    pair = (open_artefact(dense), open_artefact(sparse))
    require_pair(*pair)
    how = How(
        plan=options.plan(),
        keep=keep or Keep(),
        opener=opener,
        clock=clock,
        tell=progress or _silent,
    )
    with tools_of(how, "ab", pair, machine) as tools:
        lines = measure_processes(pair, how.plan, how.rule, tools)
        verdict, more = _judge(lines, pair, how, tools, options)
    return _result(pair, [*lines, *more], how, options, verdict, machine)


def _judge(
    lines: Sequence[Line], pair: Sequence[Artefact], how: How, tools: Tools, options: AbOptions
) -> tuple[Verdict, list[Line]]:
    """The verdict on decode; a regression is measured again before it is called one."""
    name = options.workload.name
    speedup = speedups_of(rounds_of(lines, name), options.seed)
    verdict = judge(speedup.decode, options.min_speedup)
    if verdict.status != "regression":
        return verdict, []
    plan = replace(how.plan, workloads=(options.workload,))
    more = measure_processes(pair, plan, how.rule, tools, run=1)
    again = speedups_of(rounds_of(more, name), options.seed)
    return judge_again(verdict, again.decode), more


def _result(
    pair: Sequence[Artefact],
    lines: Sequence[Line],
    how: How,
    options: AbOptions,
    verdict: Verdict,
    machine: Fingerprint,
) -> AbResult:
    kept = [line for line in lines if line.run == 0]
    rounds = rounds_of(kept, options.workload.name)
    tests = _tests(kept)
    infos = side_info(pair[0], kept, "base"), side_info(pair[1], kept, "new")
    sides = [
        side_of(artefact, info, test, rounds, which, options.workload)
        for artefact, info, test, which in zip(pair, infos, tests, ("dense", "sparse"), strict=True)
    ]
    speedup = speedups_of(rounds, options.seed)
    processes = infos[0].processes
    title = options.title or f"{pair[1].label} against {pair[0].label}"
    notes = notes_on(sides[0], sides[1], speedup, machine, processes) + process_notes(kept)
    first = judge_lines(kept, how.plan.workloads, Rule(), paired=True, seed=options.seed)
    figures = [
        all_figures(kept, how.plan.workloads, side, info)
        for side, info in zip(("base", "new"), infos, strict=True)
    ]
    return AbResult(
        title=title,
        settings=_settings(options, len(rounds), processes),
        dense=sides[0],
        sparse=sides[1],
        speedup=speedup,
        verdict=verdict,
        notes=notes,
        fingerprint=machine,
        rounds=rounds,
        comparison=CompareResult(
            title=title,
            paired=True,
            rule=rule_used(how.rule),
            base=infos[0],
            new=infos[1],
            cells=make_cells(first, None, how.rule, paired=True, gate=False),
            left_out={f.workload: f.left_out for f in figures[0] if f.left_out},
            base_workloads=figures[0],
            new_workloads=figures[1],
            verdict=Decision(
                status=verdict.status, exit_code=verdict.exit_code, reason=verdict.reason
            ),
            notes=notes,
            base_fingerprint=machine,
            new_fingerprint=machine,
            readings=[line for line in lines if isinstance(line, Reading)],
            processes=[line for line in lines if isinstance(line, ProcessLine)],
        ),
    )


def rounds_of(lines: Sequence[Line], workload: str) -> list[Round]:
    """Readings of one workload put side by side again."""
    found: dict[tuple[int, int], dict[str, Reading]] = {}
    for line in lines:
        if isinstance(line, Reading) and line.workload == workload:
            found.setdefault((line.process, line.round), {})[line.side] = line
    return [
        Round(
            order="AB" if both["base"].first else "BA",
            process=process,
            dense=_sample(both["base"]),
            sparse=_sample(both["new"]),
        )
        for (process, _), both in sorted(found.items())
    ]


def _sample(reading: Reading) -> Sample:
    return Sample(
        prefill_seconds=reading.prefill_seconds or 0.0, token_seconds=reading.sequences[0]
    )


def _tests(lines: Sequence[Line]) -> list[SelfTest]:
    found = {
        line.side: line.selftest
        for line in lines
        if isinstance(line, ProcessLine) and line.selftest is not None
    }
    return [found["base"], found["new"]]


def _settings(options: AbOptions, rounds: int, processes: int) -> Settings:
    return Settings(
        rounds=rounds,
        processes=processes,
        warmup_rounds=options.warmup_rounds,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        seed=options.seed,
    )


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total
