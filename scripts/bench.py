"""`make bench`: 70 % sparse against the dense twin on DeepSparse, SmolLM2-135M and a 1.1 B shape.

Writes build/bench/smollm2.json, build/bench/tinyllama-1.1b.json and build/bench/report.html.
Whatever comes out is printed: on a CPU without AVX-512 DeepSparse gains nothing at decode.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.render.html import ab_html
from bench.results import AbResult
from harness.models.smollm2 import fetch_smollm2
from scripts.steps import BENCH, ROOT, main_of, make_once, step

SHAPE = "tinyllama-1.1b"
TARGET = "deepsparse"
MODELS = BENCH / "models"
# Both artefacts are in memory together. DeepSparse compiles a second copy of the weights for
# prompt chunks, which 24 GB do not hold for the 1.1 B shape: its prompts go token by token.
OPTIONS = {"smollm2": "", SHAPE: ",sequence_length=128,prefill_chunk=1"}


def main() -> int:
    """Make the four artefacts, time them in pairs, write the report."""
    results = [
        measure("smollm2", smollm2_models(), "10"),
        measure(SHAPE, random_models(), "8"),
    ]
    report = BENCH / "report.html"
    report.write_text(ab_html(results), encoding="utf-8")
    print(f"\nreport: {rel(report)}")
    return 0


def smollm2_models() -> dict[str, Path]:
    """The dense checkpoint (in the cache outside the project), and its twin at 70 %."""
    dense = fetch_smollm2(say=lambda text: print(text, flush=True))
    sparse = MODELS / "smollm2-0.7"
    make_once(sparse, "sparse-tune", "prune", str(dense), "--method", "magnitude",
              "--sparsity", "0.7", "-o", rel(sparse))  # fmt: skip
    return {"0.0": dense, "0.7": sparse}


def random_models() -> dict[str, Path]:
    """The 1.1 B shape with random weights, dense and at 70 %."""
    folders = {sparsity: MODELS / f"{SHAPE}-{sparsity}" for sparsity in ("0.0", "0.7")}
    for sparsity, folder in folders.items():
        make_once(folder, "sparse-bench", "make-random", SHAPE, "-o", rel(folder),
                  "--sparsity", sparsity)  # fmt: skip
    return folders


def measure(model: str, folders: dict[str, Path], rounds: str) -> AbResult:
    """Export both twins, then time them in interleaved pairs."""
    outputs: list[str] = []
    for sparsity, folder in folders.items():
        out = BENCH / "artefacts" / f"{model}-{sparsity}"
        outputs.append(rel(out))
        make_once(out, "sparse-export", rel(folder),
                  "--target", TARGET + OPTIONS[model], "-o", rel(out))  # fmt: skip
    result = BENCH / f"{model}.json"
    step("sparse-bench", "ab", *outputs, "--rounds", rounds, "--processes", "1",
         "--prompt-tokens", "64", "--new-tokens", "32", "--title", f"{model}, dense against 70 %",
         "--json", rel(result), allowed=(0, 1, 4))  # fmt: skip
    return AbResult.model_validate_json(result.read_text(encoding="utf-8"))


def rel(path: Path) -> str:
    """A path as a person at the project's root would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main_of(main))
