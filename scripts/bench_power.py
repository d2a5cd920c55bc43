"""How often sparse-bench is wrong, and what it finds: simulation on recorded noise, for docs/.

record   measure a mock that reads weights against itself, pair after pair of fresh processes, on
         whatever else this machine is doing: docs/results/data/bench-noise.json
curves   false alarms, and the power for planted slow-downs: docs/results/bench-power.svg and .json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.mock.make import make_mock
from backends.mock.spec import MockSpec
from bench.artefacts import open_artefact
from bench.blocks import Table, blocks_of
from bench.decide.rule import Rule
from bench.decide.simulate import Design, Noise, Rates, simulate
from bench.extras import need
from bench.fingerprint import fingerprint
from bench.pairs import Plan, Tools, measure_processes, open_session
from bench.workloads import decode
from scripts.steps import ROOT

RESULTS = ROOT / "docs" / "results"
NOISE = RESULTS / "data" / "bench-noise.json"
METRICS = ("itl", "tpot")


def record(pairs: int, rounds: int) -> None:
    """Median seconds a token of both sides, by pair and round."""
    spec = MockSpec(ttft_ms=0, tpot_ms=0, work="gemv", weight_bytes=16 << 20)
    workload = decode(1, 16, 16)
    plan = Plan((workload,), pairs, pairs, (rounds,))
    with tempfile.TemporaryDirectory() as folder:
        make_mock(Path(folder, "mock"), spec)
        artefact = open_artefact(Path(folder, "mock"))

        def tell(what: str, done: int, total: int) -> None:
            if "load" in what and not done:
                print(what, flush=True)

        tools = Tools(open_session, tell=tell)
        lines = measure_processes([artefact, artefact], plan, Rule(), tools)
    table = {metric: _table(*blocks_of(lines, workload.name, metric)) for metric in METRICS}
    NOISE.parent.mkdir(parents=True, exist_ok=True)
    machine = fingerprint()
    NOISE.write_text(
        json.dumps(
            {
                "what": "[pair][side][round] of equal sides: median gap, and mean, in seconds",
                "cpu": machine.cpu,
                "cores": machine.cores_usable,
                "load_at_end": machine.load_at_start,
                **table,
            }
        )
        + "\n"
    )
    print(f"{len(table['itl'])} pairs of {rounds} rounds")


def _table(base: Table, new: Table) -> list[list[list[float]]]:
    pairs = zip(base, new, strict=True)
    return [[np.round(side, 8).tolist() for side in pair] for pair in pairs]


def read_noise(path: Path = NOISE, metric: str = "itl") -> Noise:
    """The recording, `[pairs, 2, rounds]`."""
    return np.array(json.loads(path.read_text())[metric], dtype=np.float64)


@dataclass(frozen=True)
class Case:
    """A way to measure, as the command line has it."""

    words: str
    rounds: int
    design: Design
    cells: int = 1
    slowdowns: tuple[float, ...] = (1.0, 1.02, 1.03, 1.05, 1.10)


# A round of the recorded engine takes 0.12 s, waiting included: 4 s hold 32 of them.
CASES = {
    "default": Case("4 s of 8 to 48 pairs (default)", 32, Design(8, 48, 8)),
    "suite": Case("the same, 7 workloads", 32, Design(8, 48, 8), 7, (1.0,)),
    "short": Case("2 rounds of 8 to 24 pairs", 2, Design(8, 24, 4)),
}


def curves(runs: int) -> dict[str, Any]:
    """Rates by case and slow-down."""
    noise, rule = read_noise(), Rule()
    found: dict[str, Any] = {"runs": runs, "rule": asdict(rule), "cases": {}}
    for name, case in CASES.items():
        rates: dict[str, Any] = {}
        for slowdown in case.slowdowns:
            one = simulate(
                noise[:, :, : case.rounds], slowdown, rule, case.design, runs, 7, case.cells
            )
            rates[f"{slowdown:.2f}"] = asdict(one)
            print(f"{name}, {slowdown - 1:+.0%}: {told(one)}", flush=True)
        found["cases"][name] = {
            "what": case.words, "rounds": case.rounds, "cells": case.cells,
            "design": asdict(case.design), "rates": rates,
        }  # fmt: skip
    return found


def told(rates: Rates) -> str:
    """One line."""
    return (
        f"slower {rates.slower:.1%}, suspected {rates.once:.1%}, undecided {rates.noisy:.1%}, "
        f"{rates.pairs:.1f} pairs"
    )


def plot(found: dict[str, Any], path: Path) -> None:
    """Power against the planted slow-down, by case."""
    figure_class: Any = need("matplotlib.figure").Figure
    rc_context: Any = need("matplotlib").rc_context
    cases = [case for case in found["cases"].values() if len(case["rates"]) > 1]
    with rc_context({"svg.hashsalt": "sparse-bench"}):
        figure = figure_class(figsize=(8.0, 3.4), layout="constrained")
        for axes, case in zip(figure.subplots(1, len(cases), sharey=True), cases, strict=True):
            rates = case["rates"]
            x = [100 * (float(s) - 1) for s in rates]
            lines = (("slower", "confirmed"), ("once", "suspected"), ("noisy", "undecided"))
            for key, words in lines:
                axes.plot(x, [100 * r[key] for r in rates.values()], "o-", label=words)
            axes.axhline(95, linestyle=":", color="grey")
            axes.axhline(1, linestyle=":", color="grey")
            axes.set_title(case["what"], fontsize=9)
            axes.set_xlabel("planted slow-down, %")
            axes.set_ylabel("share of runs, %")
            axes.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> int:
    """0 where no case raises more than 1 % of false alarms, and one finds 5 % at 95 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "curves"))
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--runs", type=int, default=500)
    options = parser.parse_args()
    if options.what == "record":
        record(options.pairs, options.rounds)
        return 0
    found = curves(options.runs)
    (RESULTS / "bench-power.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(found, RESULTS / "bench-power.svg")
    cases = found["cases"]
    quiet = all(case["rates"]["1.00"]["slower"] <= 0.01 for case in cases.values())
    return 0 if quiet and cases["default"]["rates"]["1.05"]["slower"] >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
