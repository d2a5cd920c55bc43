"""`make bench-optimum`: time and memory beside optimum-onnx 0.1.0 on SmolLM2-135M."""

from __future__ import annotations

import sys

from scripts.bench import rel, smollm2_models
from scripts.steps import main_of, step


def main() -> int:
    """Fetch the model once, then export it with both tools in turn."""
    dense = smollm2_models()["0.0"]
    return step("sparse-bench", "optimum", rel(dense), "--rounds", "3",
                "--scratch", "build/bench", "--json", "build/bench/optimum.json",
                allowed=(0, 1))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main_of(main))
