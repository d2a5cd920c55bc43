"""The three ways to a result: one artefact, two side by side, or against a result of before."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.artefacts import Artefact, open_artefact, require_pair
from bench.cells import First, decide, judge_lines, make_cells
from bench.clock import REAL, Clock
from bench.comparison import CompareResult, RuleUsed, RunResult, RunSettings
from bench.decide.rule import Rule
from bench.extras import need
from bench.figures import all_figures, side_info
from bench.fingerprint import fingerprint
from bench.journal import Journal, Line
from bench.like import require_like, require_same_work
from bench.notes import machine_notes, process_notes
from bench.pairs import Opener, Plan, Tools, measure_processes, open_session
from bench.parts import Fingerprint
from bench.readings import ProcessLine, Reading
from bench.workloads import Workload
from exporter.contract import Progress
from exporter.errors import EngineUnfit


@dataclass(frozen=True)
class Keep:
    """Where raw samples go while they are measured; by default a file that ends with success."""

    path: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class How:
    """Everything beside the artefacts."""

    plan: Plan
    rule: Rule = field(default_factory=Rule)
    keep: Keep = field(default_factory=Keep)
    title: str = ""
    force: bool = False
    opener: Opener = open_session
    clock: Clock = REAL
    tell: Progress = lambda what, done, total: None


def run_one(folder: Path, how: How) -> RunResult:
    """Measure one artefact in fresh processes.

    Raises:
        VerificationFailed, UsageError, InputRefused, EngineUnfit: as `measure_processes`.
    """
    need("scipy.stats")  # now, not after minutes of measuring
    machine, artefact = fingerprint(ceiling=True), open_artefact(folder)
    with tools_of(how, "run", [artefact], machine) as tools:
        lines = measure_processes([artefact], how.plan, how.rule, tools)
        return run_result(artefact, lines, how, machine)


def run_result(
    artefact: Artefact, lines: Sequence[Line], how: How, machine: Fingerprint
) -> RunResult:
    """One side's lines as a result."""
    require_something(lines)
    info = side_info(artefact, lines, "base")
    return RunResult(
        title=how.title or artefact.label,
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        settings=RunSettings(
            workloads=list(how.plan.workloads),
            rounds=list(how.plan.rounds),
            seconds=how.plan.seconds,
            seed=how.plan.seed,
            threads=how.plan.threads,
        ),
        side=info,
        workloads=all_figures(lines, how.plan.workloads, "base", info),
        notes=machine_notes(machine) + process_notes(lines),
        fingerprint=machine,
        readings=[line for line in lines if isinstance(line, Reading)],
        processes=[line for line in lines if isinstance(line, ProcessLine)],
    )


def compare_now(base: Path, new: Path, how: How) -> CompareResult:
    """Measure two artefacts side by side; what is slower is measured again.

    Raises:
        As `run_one`.
    """
    need("scipy.stats")
    machine = fingerprint(ceiling=True)
    pair = [open_artefact(base), open_artefact(new)]
    require_pair(*pair)
    with tools_of(how, "compare", pair, machine) as tools:
        lines = measure_processes(pair, how.plan, how.rule, tools)
        require_something(lines)
        first = judge_lines(lines, how.plan.workloads, how.rule, paired=True, seed=how.plan.seed)
        again = None
        if suspects := first.suspects():
            plan = replace(how.plan, workloads=tuple(suspects))
            more = measure_processes(pair, plan, how.rule, tools, run=1)
            again = judge_lines(more, suspects, how.rule, paired=True, seed=how.plan.seed + 1)
            lines += more
        infos = side_info(pair[0], lines, "base"), side_info(pair[1], lines, "new")
        kept = [line for line in lines if line.run == 0]
        return CompareResult(
            title=how.title or f"{pair[1].label} against {pair[0].label}",
            paired=True,
            rule=rule_used(how.rule),
            base=infos[0],
            new=infos[1],
            cells=(cells := make_cells(first, again, how.rule, paired=True)),
            left_out={},
            base_workloads=(figures := all_figures(kept, how.plan.workloads, "base", infos[0])),
            new_workloads=all_figures(kept, how.plan.workloads, "new", infos[1]),
            verdict=decide(cells),
            notes=machine_notes(machine) + process_notes(lines),
            base_fingerprint=machine,
            new_fingerprint=machine,
            readings=[line for line in lines if isinstance(line, Reading)],
            processes=[line for line in lines if isinstance(line, ProcessLine)],
        ).model_copy(update={"left_out": {f.workload: f.left_out for f in figures if f.left_out}})


def compare_with(base: RunResult, folder: Path, how: How) -> CompareResult:
    """Measure an artefact as a result of before was measured, and compare; slower: once more."""
    settings = base.settings
    plan = replace(
        how.plan,
        workloads=tuple(settings.workloads),
        rounds=tuple(settings.rounds),
        seconds=settings.seconds,
        seed=settings.seed,
        threads=settings.threads,
        processes=max(how.plan.processes, base.side.processes),
    )
    how = replace(how, plan=plan)
    require_like(base.fingerprint, fingerprint(), force=how.force)  # before minutes of measuring
    new = run_one(folder, how)
    found = compare_results(base, new, how.rule, force=how.force)
    if not any(cell.status == "noisy" and cell.p_holm < how.rule.alpha for cell in found.cells):
        return found
    return compare_results(base, new, how.rule, force=how.force, again=run_one(folder, how))


def compare_results(
    base: RunResult,
    new: RunResult,
    rule: Rule,
    *,
    force: bool = False,
    again: RunResult | None = None,
) -> CompareResult:
    """Compare two results of before; `again` is the independent re-run of the new side.

    Raises:
        EngineUnfit: `machine-unlike` unless forced.
        UsageError: other workloads.
    """
    need("scipy.stats")
    require_same_work(base, new)
    notes = require_like(base.fingerprint, new.fingerprint, force=force)
    workloads = base.settings.workloads
    first = _judge_results(base, new, workloads, rule)
    second = None
    if again is not None:
        require_same_work(base, again)
        notes += require_like(base.fingerprint, again.fingerprint, force=force)
        second = _judge_results(base, again, first.suspects(), rule) if first.suspects() else None
    cells = make_cells(first, second, rule, paired=False)
    return CompareResult(
        title=f"{new.title} against {base.title}",
        paired=False,
        rule=rule_used(rule),
        base=base.side,
        new=new.side,
        cells=cells,
        left_out={w.workload: w.left_out for w in new.workloads if w.left_out},
        base_workloads=base.workloads,
        new_workloads=new.workloads,
        verdict=decide(cells),
        notes=notes + software_notes(base.fingerprint, new.fingerprint) + new.notes,
        base_fingerprint=base.fingerprint,
        new_fingerprint=new.fingerprint,
        readings=[*base.readings, *as_new(new)],
        processes=[*base.processes],
    )


def _judge_results(
    base: RunResult, new: RunResult, workloads: Sequence[Workload], rule: Rule
) -> First:
    lines: list[Line] = [*base.readings, *as_new(new)]
    both = {r.workload for r in base.readings} & {r.workload for r in new.readings}
    chosen = [w for w in workloads if w.name in both]
    return judge_lines(lines, chosen, rule, paired=False, seed=base.settings.seed)


def as_new(result: RunResult) -> list[Reading]:
    """A result's readings on the other side."""
    return [reading.model_copy(update={"side": "new"}) for reading in result.readings]


def rule_used(rule: Rule) -> RuleUsed:
    """The rule as data."""
    return RuleUsed(**asdict(rule))


def require_something(lines: Sequence[Line]) -> None:
    """Refuse to call nothing a result.

    Raises:
        EngineUnfit: `engine-unfit`.
    """
    if not any(isinstance(line, Reading) for line in lines):
        raise EngineUnfit("engine-unfit", "no workload of the suite can be run by this artefact")


def software_notes(base: Fingerprint, new: Fingerprint) -> list[str]:
    """Versions that differ."""
    names = sorted({*base.packages, *new.packages})
    return [
        f"{name} {base.packages.get(name, 'absent')}, now {new.packages.get(name, 'absent')}."
        for name in names
        if base.packages.get(name) != new.packages.get(name)
    ]


@contextmanager
def tools_of(
    how: How, kind: str, artefacts: Sequence[Artefact], machine: Fingerprint
) -> Generator[Tools]:
    """A journal that outlives an interruption, and goes where nobody asked to keep it."""
    plan = asdict(how.plan)
    head = {
        "kind": kind,
        "artefacts": [a.manifest_sha256 for a in artefacts],
        "plan": plan,
        "cpu": machine.cpu,
        "packages": machine.packages,
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:8]
    path = how.keep.path or Path(f"sparse-bench-{kind}-{digest}.jsonl")
    journal = Journal(path, head, resume=how.keep.resume)
    try:
        yield Tools(how.opener, how.clock, how.tell, journal)
    except BaseException as error:
        journal.close()
        if isinstance(error, KeyboardInterrupt):
            how.tell(f"interrupted: --resume goes on from {path}", 0, 1)
        elif how.keep.path is None and path.stat().st_size and not _has_readings(path):
            path.unlink()
        raise
    journal.close()
    if how.keep.path is None:
        path.unlink(missing_ok=True)


def _has_readings(path: Path) -> bool:
    return '"line":"reading"' in path.read_text(encoding="utf-8")
