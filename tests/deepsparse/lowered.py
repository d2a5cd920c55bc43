"""Tiny models lowered for DeepSparse, and what transformers says about them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from backends.deepsparse.target import DeepSparseTarget
from tests.fused import fused_from
from tests.tiny import make_tiny, save_tokenizer


def lower(folder: Path, kind: str, target: DeepSparseTarget, **model: Any) -> Any:
    """Lower a tiny model into `folder`; gives the transformers model."""
    source = folder.with_name(folder.name + "-source")
    source.mkdir()
    save_tokenizer(source)
    folder.mkdir()
    made = make_tiny(kind, **model)
    target.lower(fused_from(made, root=source), folder, lambda *_: None)
    return made


def logits_of(model: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Float32 logits `[T, V]` of transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def greedy_of(model: Any, tokens: list[int], n: int) -> tuple[int, ...]:
    """Greedy tokens without a cache: slow and obvious."""
    made = list(tokens)
    for _ in range(n):
        made.append(int(logits_of(model, made)[-1].argmax()))
    return tuple(made[len(tokens) :])


def prompts(lengths: tuple[int, ...], vocab: int = 259) -> list[list[int]]:
    """Random prompts of these lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocab, n).tolist() for n in lengths]


def digests(folder: Path) -> dict[str, str]:
    """sha256 by file name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
