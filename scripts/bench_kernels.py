"""Time the CPU kernels against their dense twins, torch and DeepSparse; build/bench/kernels.*."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from backends.packed.kernels.library import library
from bench.fingerprint import fingerprint
from bench.kernels.page import kernels_html
from bench.kernels.peer import deepsparse_worker
from bench.kernels.run import block

SHAPES = ((2048, 5632), (4096, 11008))
VALUES = ("bf16", "int8", "int8-a8")
PATTERNS = ("50%", "60%", "70%", "80%", "90%", "2:4", "2:8")


def main() -> None:
    """Run the blocks, one for each shape and M, and write JSON and HTML after each."""
    given = _arguments()
    found: dict[str, Any] = {"ratios": [], "times": [], "blocks": []}
    if given.add and given.out.exists():
        found = json.loads(given.out.read_text())
    threads = library().threads
    found |= {"isa": library().choose().label, "threads": threads, "cpu": fingerprint().cpu}
    with deepsparse_worker(threads, not given.no_deepsparse) as worker:
        for shape in (SHAPES[i] for i in given.shapes):
            for m in given.rows:
                values, total = VALUES, given.megabytes << 20
                part = block(
                    shape, m, given.patterns, values, total, given.rounds, given.turn, worker
                )  # fmt: skip
                found["deepsparse"] = worker.facts if worker else found.get("deepsparse")
                _put(found, part, shape, m)
                show(part)
                write(found, given.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/kernels.json"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 128], help="M")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turn", type=float, default=0.03, help="seconds of a case in a round")
    parser.add_argument("--megabytes", type=int, default=160, help="working set of a case")
    parser.add_argument("--shapes", type=int, nargs="+", default=[0, 1], help="by number")
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--add", action="store_true", help="keep other blocks of an earlier run")
    parser.add_argument("--no-deepsparse", action="store_true")
    return parser.parse_args()


def _put(found: dict[str, Any], part: dict[str, Any], shape: tuple[int, int], m: int) -> None:
    here = (*shape, m)
    for kind in ("ratios", "times", "blocks"):
        others = [each for each in found.get(kind, []) if (each["n"], each["k"], each["m"]) != here]
        found[kind] = others + part[kind]


def write(found: dict[str, Any], out: Path) -> None:
    """The JSON, and the page beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".html").write_text(kernels_html(found))


def show(part: dict[str, Any]) -> None:
    """Print a block as lines."""
    for each in part["times"]:
        ms, rate = each["ms"]["median"], each["gb_per_second"]
        head = f"[{each['n']}, {each['k']}] M={each['m']} {each['case']:14}"
        print(f"{head} {ms:8.3f} ms {rate:6.1f} GB/s")
    for each in part["ratios"]:
        span = f"{each['low']:.2f} to {each['high']:.2f}"
        head = f"  {each['values']} {each['pattern']:4} / {each['against']:10}"
        print(f"{head} {each['ratio']:.2f} ({span})", flush=True)
    for each in part["blocks"]:
        if each["stolen"] is not None:
            print(f"  the host took {each['stolen']:.0%} of the CPU time wanted", flush=True)


if __name__ == "__main__":
    main()
