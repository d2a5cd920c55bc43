"""What several scripts start from, made once by the commands a user would type."""

from __future__ import annotations

from pathlib import Path

from harness.models.smollm2 import fetch_smollm2
from harness.text import BUILTIN, load_text
from scripts.steps import make_once


def pruned(out: Path) -> Path:
    """SmolLM2 with 70 % of each linear pruned by Wanda, and its masks file."""
    folder = out / "smollm2-70"
    if not folder.exists():
        base = fetch_smollm2(say=lambda text: print(f"  {text}"))
        make_once(folder, "sparse-tune", "prune", str(base), "--method", "wanda", "--sparsity",
                  "0.7", "-o", str(folder))  # fmt: skip
    return folder


def masks_of(sparse: Path) -> Path:
    """Where `sparse-tune prune` puts the masks."""
    return sparse / "masks" / "masks.safetensors"


def tuned(out: Path, sparse: Path, data: str, steps: int) -> Path:
    """A dense LoRA trained on the pruned model without its mask."""
    lora = out / "adapter-lora"
    make_once(lora, "sparse-tune", "train", str(sparse), "--masks", str(masks_of(sparse)),
              "--method", "lora", "--batch", "2", "--steps", str(steps), "--data", data,
              "-o", str(lora))  # fmt: skip
    return lora


def builtin_text(out: Path) -> Path:
    """The text that CPython carries, as a file."""
    path = out / "text.txt"
    path.write_text(load_text(BUILTIN), encoding="utf-8")
    return path
