"""bench_vllm_load.py DENSE PACKED...: what loading costs in vLLM, beside the dense folder.

Each folder in a fresh process, `--rounds` times, interleaved; prints medians. Memory beside mapped
pages comes of one more run each, whose time does not count. The bounds: at most
1.5 times the seconds of the dense folder, and at the peak at most 1.2 times the larger of what
lies on the disk and what stays in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backends.vllm.runtime import RUNTIME

_PROGRAM = Path(__file__).parent / "vllm_load.py"
_MB = 1e6


def measure(folder: Path, memory: str, *flags: str) -> dict[str, float]:
    """One load in a process of its own."""
    done = subprocess.run(
        [str(RUNTIME.interpreter()), str(_PROGRAM), str(folder), *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={
            **RUNTIME.environment(),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_HOST_IP": "127.0.0.1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            "SPARSE_EXPORT_MEMORY": memory,
        },
    )
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rows(
    folders: list[Path],
    runs: dict[Path, list[dict[str, float]]],
    sampled: dict[Path, dict[str, float]],
) -> list[list[Any]]:
    """Medians, and their ratios to the bounds' bases."""
    middle = {
        folder: {
            key: statistics.median(run[key] for run in runs[folder]) for key in runs[folder][0]
        }
        for folder in folders
    }
    dense = middle[folders[0]]
    found: list[list[Any]] = []
    for folder, row in middle.items():
        base = max(row["disk"], row["after_anonymous"])
        found.append(
            [
                folder.name,
                f"{row['disk'] / _MB:.0f}",
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / dense['seconds']:.2f}",
                f"{row['after_anonymous'] / _MB:.0f}",
                f"{row['peak'] / _MB:.0f}",
                f"{row['peak'] / base:.2f}",
                f"{sampled[folder]['peak_anonymous'] / _MB:.0f}",
                f"{sampled[folder]['peak_anonymous'] / base:.2f}",
            ]
        )
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="the dense one first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("fast", "low"), default="fast")
    options = parser.parse_args()
    folders: list[Path] = [folder.absolute() for folder in options.folders]
    runs: dict[Path, list[dict[str, float]]] = {folder: [] for folder in folders}
    for _ in range(options.rounds):
        for folder in folders:
            runs[folder].append(measure(folder, options.memory))
    sampled = {folder: measure(folder, options.memory, "--sample") for folder in folders}
    heads = ("folder", "disk MB", "load s", "of dense", "resident MB", "peak MB", "of larger")
    table = Table(*heads, "without mapped pages", "of larger", title=f"memory={options.memory}")
    for row in rows(folders, runs, sampled):
        table.add_row(*row)
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
