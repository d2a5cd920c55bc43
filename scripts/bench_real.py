"""bench_real.py ARTEFACT: an artefact against itself in real runs, with a planted change or none.

Prints each run's outcome and how many were called slower: with --factor 1 these are false alarms,
with --factor 1.1 they are what was found. Both sides run in scripts/slow_host.py, so that nothing
but the factor differs. For engines that run in our own environment (onnxruntime, hf, mock).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from backends.process.client import ProcessSession
from bench.artefacts import Artefact, open_artefact
from bench.cells import decide, judge_lines, make_cells
from bench.decide.rule import Rule
from bench.pairs import Plan, Tools, measure_processes
from bench.workloads import decode
from exporter.contract import Session

_HOST = Path(__file__).with_name("slow_host.py")


class Openers:
    """Opens the two sides in turn: the second of each pair is the slow one."""

    def __init__(self, factor: float) -> None:
        self._factor, self._count = factor, 0

    def __call__(self, artefact: Artefact, threads: int | None) -> Session:
        """A process of its own."""
        factor = self._factor if self._count % 2 else 1.0
        self._count += 1
        argv = [sys.executable, str(_HOST), artefact.target_text, str(artefact.folder)]
        return ProcessSession([*argv, str(threads or 0), str(factor)])


def once(folder: Path, plan: Plan, factor: float) -> str:
    """One whole decision, re-run included: the verdict's status."""
    artefact, rule = open_artefact(folder), Rule()
    tools = Tools(Openers(factor))
    pair = [artefact, artefact]
    lines = measure_processes(pair, plan, rule, tools)
    first = judge_lines(lines, plan.workloads, rule, paired=True, seed=plan.seed)
    again = None
    if first.suspects():
        more = measure_processes(pair, plan, rule, tools, run=1)
        again = judge_lines(more, plan.workloads, rule, paired=True, seed=plan.seed + 1)
    verdict = decide(make_cells(first, again, rule, paired=True))
    print(f"{verdict.status}: {verdict.reason}", flush=True)
    return verdict.status


def main() -> int:
    """Always 0: the counts are the result."""
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
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    workloads = (decode(1, o.prompt_tokens, o.new_tokens),)
    found: list[str] = []
    for seed in range(o.runs):
        plan = Plan(workloads, o.processes, max(o.processes, o.max_processes), (o.rounds,),
                    threads=o.threads, seed=10_000 * seed)  # fmt: skip
        found.append(once(o.artefact, plan, o.factor))
    counts = dict(Counter(found))
    print(json.dumps({"factor": o.factor, "runs": o.runs, **counts}))
    if o.json is not None:
        text = json.dumps({"factor": o.factor, "runs": found}, indent=2)
        o.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
