"""`make bench-memory`: peak memory of lowering random models of 1, 2, 4 and 8 GB."""

from __future__ import annotations

import sys

from scripts.steps import BENCH, ROOT, make_once, step

SIZES = ("1gb", "2gb", "4gb", "8gb")


def main() -> int:
    """Make the models once, lower each in a process of its own, print and keep the peaks."""
    folders: list[str] = []
    for size in SIZES:
        folder = BENCH / "models" / size
        folders.append(str(folder.relative_to(ROOT)))
        make_once(folder, "sparse-bench", "make-random", size, "-o", folders[-1],
                  "--sparsity", "0.7")  # fmt: skip
    return step("sparse-bench", "memory", *folders, "--json", "build/bench/memory.json",
                allowed=(0, 1))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
