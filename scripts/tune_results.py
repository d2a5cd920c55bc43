"""Methods side by side on SmolLM2-135M: the table of docs/results/tuning.md, by one command.

`python -m scripts.tune_results --data TRAIN.txt --held-out TEST.txt`: every row of the comparison
at 50 %, 70 % and 2:4, three seeds. It takes hours on two cores; each cell is kept when it is done,
so the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.cli import run
from harness.models.smollm2 import fetch_smollm2, models_home

ROWS = (
    "sparse-lora",
    "oneshot",
    "oneshot:pruner=sparsegpt",
    "losa",
    "losa:rates=uniform",
    "losa:ranks=uniform",
    "losa:rates=uniform:ranks=uniform",
    "swgi",
    "s2ft",
    "oracle",
)


def main() -> int:
    """Fetch the model where it is not here, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="text that is trained on")
    parser.add_argument("--held-out", required=True, help="text that is scored")
    parser.add_argument("--sparsity", default="0.7,0.5,2:4")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", default="250")
    parser.add_argument("--methods", default=",".join(ROWS))
    parser.add_argument("-o", "--output", type=Path, default=Path("build/tune-results"))
    given = parser.parse_args()
    model = fetch_smollm2(models_home())
    given.output.parent.mkdir(parents=True, exist_ok=True)
    return run(
        [
            "compare",
            str(model),
            "--methods",
            given.methods,
            "--data",
            given.data,
            "--held-out",
            given.held_out,
            "--sparsity",
            given.sparsity,
            "--seeds",
            given.seeds,
            "--steps",
            given.steps,
            "--batch",
            "4",
            "--length",
            "128",
            "--lr",
            "1e-3",
            "--samples",
            "64",
            "--eval-length",
            "512",
            "-o",
            str(given.output),
        ]  # fmt: skip
    )


if __name__ == "__main__":
    sys.exit(main())
