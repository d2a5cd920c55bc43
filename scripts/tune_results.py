"""Methods side by side on SmolLM2-135M: the tables of docs/results/tuning.md, by one command.

`python -m scripts.tune_results --data TRAIN.txt --held-out TEST.txt`: every row at 70 %, fewer at
50 %, 2:4 and mixed 2:4, three seeds each, and the dense model's score by the same protocol. It
takes hours on two cores; each cell is kept when it is done, so the same command goes on where it
stopped. `--parts` picks some of the tables, so that two can be made side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from exporter.store.jsonio import read_json
from harness.cli import run
from harness.compare.page import page
from harness.compare.table import lines, markdown
from harness.models.smollm2 import fetch_smollm2, models_home

TURNS = "iterations=3"  # of few steps, so that masks are drawn anew every few of them
ROWS = (
    "sparse-lora",
    "oneshot",
    "oneshot:pruner=sparsegpt",
    f"losa:{TURNS}",
    f"losa:{TURNS}:rates=uniform",
    f"losa:{TURNS}:ranks=uniform",
    f"swgi:{TURNS}",
    "s2ft",
    "oracle",
)
FEW = ("sparse-lora", "oneshot", "oneshot:pruner=sparsegpt", f"losa:{TURNS}")
# Name of the folder -> sparsity, rows.
PARTS = {
    "70": ("0.7", ROWS),
    "24": ("2:4", (*FEW, f"losa:{TURNS}:mixed=true")),
    "50": ("0.5", FEW),
}


def main() -> int:
    """Fetch the model where it is not here, and compare."""
    given = parse()
    model = fetch_smollm2(models_home())
    given.output.mkdir(parents=True, exist_ok=True)
    dense = given.output / "dense.json"
    scored = ["--length", given.eval_length, "--tokens", given.eval_tokens]
    if not scored_so(dense, given):
        words = ["eval", str(model), "--data", given.held_out, *scored, "-o", str(dense)]
        if code := run(words):
            return code
    for part in given.parts:
        sparsity, rows = PARTS[part]
        words = ["compare", str(model), "--sparsity", sparsity, "--methods", ",".join(rows)]
        words += ["--data", given.data, "--held-out", given.held_out, "--seeds", given.seeds]
        words += ["--steps", given.steps, "--batch", given.batch, "--length", "128"]
        words += ["--lr", "1e-3", "--samples", given.samples, "--eval-length", given.eval_length]
        words += ["--eval-tokens", given.eval_tokens, "-o", str(given.output / part)]
        if code := run(words):
            return code
    join(given.output)
    return 0


def scored_so(record: Path, given: argparse.Namespace) -> bool:
    """Whether a record of the dense model's score is there, of this text and with these options."""
    if not record.is_file():
        return False
    found = read_json(record)
    text = hashlib.sha256(Path(given.held_out).read_bytes()).hexdigest()
    asked = (text, int(given.eval_length), int(given.eval_tokens))
    return (found.get("data_sha256"), found.get("length"), found.get("most_tokens")) == asked


def join(output: Path) -> None:
    """One table and one page of all parts that are there."""
    parts = [output / part / "results.json" for part in PARTS]
    results = [cell for file in parts if file.is_file() for cell in read_json(file)["cells"]]
    found = lines(results, ROWS[0])
    dense = read_json(output / "dense.json")["perplexity"]
    title = f"SmolLM2-135M, dense {dense:.2f}; {results[0]['budget']['steps']} steps"
    (output / "table.md").write_text(markdown(found), encoding="utf-8")
    (output / "report.html").write_text(page(found, results, title), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line; numbers go on as they are written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="text that is trained on")
    parser.add_argument("--held-out", required=True, help="text that is scored")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", default="250")
    parser.add_argument("--batch", default="4")
    parser.add_argument("--samples", default="64", help="windows that masks and rates are from")
    parser.add_argument("--eval-length", default="512")
    parser.add_argument("--eval-tokens", default="65536")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/tune-results"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
