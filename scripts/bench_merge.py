"""`make bench-merge`: what merging a LoRA costs on the 1.1 B shape, beside a copy and peft."""

from __future__ import annotations

import sys

from scripts.bench import SHAPE, random_models, rel
from scripts.steps import main_of, step


def main() -> int:
    """Make the 70 % sparse model once, then run the four ways in turn."""
    sparse = random_models()["0.7"]
    return step("sparse-bench", "merge", rel(sparse), "--rounds", "3",
                "--json", f"build/bench/merge-{SHAPE}.json", allowed=(0, 1))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main_of(main))
