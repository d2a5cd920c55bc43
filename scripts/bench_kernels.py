"""Time the CPU kernels against their dense twins and torch; build/bench/kernels.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from backends.packed.kernels.library import library
from bench.kernels.run import block

SHAPES = ((2048, 5632), (4096, 11008))
PATTERNS = ("50%", "60%", "70%", "80%", "90%", "2:4", "2:8")


def main() -> None:
    """Run all blocks and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/kernels.json"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 128], help="M")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=160, help="working set of a case")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="the first so many")
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    given = parser.parse_args()
    found: dict[str, Any] = {"isa": library().choose().label, "threads": library().threads}
    found |= {"ratios": [], "times": []}
    for shape in SHAPES[: given.shapes]:
        for m in given.rows:
            calls = given.calls if m < 64 else 1
            values, total = ("bf16", "int8"), given.megabytes << 20
            part = block(shape, m, given.patterns, values, total, given.rounds, calls)
            found["ratios"] += part["ratios"]
            found["times"] += part["times"]
            show(part)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


def show(part: dict[str, Any]) -> None:
    """Print a block as lines."""
    for each in part["times"]:
        ms, rate = each["ms"]["median"], each["gb_per_second"]
        head = f"[{each['n']}, {each['k']}] M={each['m']} {each['case']:14}"
        print(f"{head} {ms:8.3f} ms {rate:6.1f} GB/s")
    for each in part["ratios"]:
        span = f"{each['low']:.2f} to {each['high']:.2f}"
        head = f"  {each['values']} {each['pattern']:4} / {each['against']:10}"
        print(f"{head} {each['ratio']:.2f} ({span})")


if __name__ == "__main__":
    main()
