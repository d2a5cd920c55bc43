"""An artefact against itself in real runs, with a planted change or none.

    python -m scripts.bench_real ARTEFACT --samples FILE --factor 1.1 --runs 10

Prints each run's outcome and how many were called slower: with --factor 1 these are false alarms,
with --factor 1.1 they are what was found. Both sides run in scripts/slow_host.py, so that nothing
but the factor differs. For engines that run in our own environment (onnxruntime, hf, mock).
Given the same samples again it goes on from them: with more --runs, or after an interruption.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from backends.process.client import ProcessSession
from bench.artefacts import Artefact, open_artefact
from bench.cells import decide, judge_lines, make_cells
from bench.decide.rule import Rule
from bench.fingerprint import fingerprint
from bench.journal import Journal
from bench.pairs import Plan, Tools, measure_processes
from bench.workloads import decode
from exporter.contract import Session

_HOST = Path(__file__).with_name("slow_host.py")


class Openers:
    """Opens an artefact as it is, or as `slowed` with every step stretched."""

    def __init__(self, slowed: Artefact, factor: float) -> None:
        self._slowed, self._factor = slowed, factor

    def __call__(self, artefact: Artefact, threads: int | None) -> Session:
        """A process of its own."""
        factor = self._factor if artefact is self._slowed else 1.0
        argv = [sys.executable, str(_HOST), artefact.target_text, str(artefact.folder)]
        return ProcessSession([*argv, str(threads or 0), str(factor)])


@dataclass(frozen=True)
class Run:
    """One whole decision, re-run included."""

    status: str
    ratio: float
    low: float
    high: float
    pairs: int


def once(pair: list[Artefact], plan: Plan, number: int, tools: Tools) -> Run:
    """Decision `number`; its lines are runs `2 number` and, re-run, `2 number + 1`."""
    rule = Rule()
    lines = measure_processes(pair, plan, rule, tools, run=2 * number)
    first = judge_lines(lines, plan.workloads, rule, paired=True, seed=plan.seed)
    again = None
    if first.suspects():
        more = measure_processes(pair, plan, rule, tools, run=2 * number + 1)
        again = judge_lines(more, plan.workloads, rule, paired=True, seed=plan.seed + 1)
    cells = make_cells(first, again, rule, paired=True)
    verdict = decide(cells)
    print(f"{number + 1}: {verdict.status}: {verdict.reason}", flush=True)
    cell = cells[0]
    return Run(verdict.status, cell.ratio, cell.low, cell.high, cell.blocks)


def main() -> int:
    """Always 0: the counts are the result."""
    o = parse()
    workloads = (decode(1, o.prompt_tokens, o.new_tokens),)
    plan = Plan(workloads, o.processes, max(o.processes, o.max_processes), (o.rounds,),
                threads=o.threads)  # fmt: skip
    artefact = open_artefact(o.artefact)
    head = {"factor": o.factor, "plan": asdict(plan), "artefact": artefact.manifest_sha256}
    journal = Journal(o.samples, head, resume=True)
    slowed = replace(artefact)
    tools = Tools(Openers(slowed, o.factor), journal=journal)
    found = [once([artefact, slowed], plan, number, tools) for number in range(o.runs)]
    journal.close()
    counts = dict(Counter(run.status for run in found))
    print(json.dumps({"factor": o.factor, **counts}))
    if o.json is not None:
        result = {"factor": o.factor, "counts": counts, "plan": asdict(plan),
                  "cpu": fingerprint().cpu, "runs": [asdict(run) for run in found]}  # fmt: skip
        o.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--max-processes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--samples", type=Path, required=True, help="kept, and gone on from")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
