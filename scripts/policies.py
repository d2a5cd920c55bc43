"""The merge policies for one dense LoRA on SmolLM2 at 70 % zeros; ends in build/policies.

Makes what it needs by the commands a user would type: the model, pruned by Wanda, and a LoRA
trained on the pruned model without its mask. `--text` and `--held-out` give the texts that
inputs are observed and perplexity is taken on; by default the text that CPython carries.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.text import BUILTIN
from scripts.smollm2_70 import builtin_text, masks_of, pruned, tuned
from scripts.steps import ROOT, main_of, step

OUT = ROOT / "build" / "policies"
AMOUNTS = "tokens=16384,held_out=16384,length=512"
# `densify` computes what is shown as unmerged.
POLICIES = ("mask", "refit", "reprune", "separate")


def main(args: list[str]) -> int:
    """0 where the table was made."""
    options = _parser().parse_args(args)
    OUT.mkdir(parents=True, exist_ok=True)
    sparse = options.sparse or pruned(OUT)
    lora = options.adapter or tuned(OUT, sparse, options.train, options.steps)
    masks = masks_of(sparse)
    text = options.text or builtin_text(OUT)
    held_out = ("--held-out", str(options.held_out)) if options.held_out else ()
    step("sparse-export", "policies", str(sparse), "--masks", str(masks), "--adapter", str(lora),
         *(word for name in POLICIES for word in ("--policy", name)),
         "--calibration", f"{text}:{options.amounts}", *held_out, "--work", str(OUT),
         "--json-file", str(OUT / "policies.json"),
         "--html", str(OUT / "policies.html"))  # fmt: skip
    print(f"report: {(OUT / 'policies.html').relative_to(ROOT)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="UTF-8 text to observe inputs on")
    parser.add_argument("--held-out", type=Path, help="UTF-8 text for the perplexity")
    parser.add_argument("--train", default=BUILTIN, help="text to train the LoRA on")
    parser.add_argument("--steps", type=int, default=100, help="of that training")
    parser.add_argument("--amounts", default=AMOUNTS)
    parser.add_argument("--sparse", type=Path, help="a pruned model with masks/masks.safetensors")
    parser.add_argument("--adapter", type=Path, help="a LoRA on it")
    return parser


if __name__ == "__main__":
    sys.exit(main_of(lambda: main(sys.argv[1:])))
