"""The merge policies for one dense LoRA on SmolLM2 at 70 % zeros; ends in build/policies.

Makes what it needs by the commands a user would type: the model, pruned by Wanda, and a LoRA
trained on the pruned model without its mask. `--text` and `--held-out` give the texts that
inputs are observed and perplexity is taken on; by default the text that CPython carries.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.models.smollm2 import fetch_smollm2
from harness.text import BUILTIN, load_text
from scripts.steps import ROOT, main_of, make_once, step

OUT = ROOT / "build" / "policies"
AMOUNTS = "tokens=16384,held_out=16384,length=512"
# `densify` computes what is shown as unmerged.
POLICIES = ("mask", "refit", "reprune", "separate")


def main(args: list[str]) -> int:
    """0 where the table was made."""
    options = _parser().parse_args(args)
    OUT.mkdir(parents=True, exist_ok=True)
    sparse, lora = options.sparse or _sparse(), options.adapter
    masks = sparse / "masks" / "masks.safetensors"
    if lora is None:
        lora = OUT / "adapter-lora"
        steps = str(options.steps)
        make_once(lora, "sparse-tune", "train", str(sparse), "--masks", str(masks), "--method",
                  "lora", "--batch", "2", "--steps", steps, "--data", options.train,
                  "-o", str(lora))  # fmt: skip
    text = options.text or _builtin()
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


def _sparse() -> Path:
    folder = OUT / "smollm2-70"
    if not folder.exists():
        base = fetch_smollm2(say=lambda text: print(f"  {text}"))
        make_once(folder, "sparse-tune", "prune", str(base), "--method", "wanda", "--sparsity",
                  "0.7", "-o", str(folder))  # fmt: skip
    return folder


def _builtin() -> Path:
    path = OUT / "text.txt"
    path.write_text(load_text(BUILTIN), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main_of(lambda: main(sys.argv[1:])))
