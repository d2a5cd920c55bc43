"""Rule: stored tensors and the architecture's tensors are the same set, leftovers named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from exporter.store.index import INDEX

# Buffers that old checkpoints hold and no model reads back.
LEFTOVERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(.+\.)?rotary_emb\.inv_freq"), "buffer; computed from the rope settings"),
    (re.compile(r"(.+\.)?masked_bias"), "buffer; a constant of the causal mask"),
    (re.compile(r"(.+\.)?h\.\d+\.attn\.bias"), "buffer; the causal mask of GPT-2"),
)
TIED = "the tied head; equal to the embedding"


def account(checkpoint: Checkpoint, spec: ModelSpec) -> Mapping[str, str]:
    """Tensors that are not exported and why; every other stored tensor is one of the spec's.

    Raises:
        InputRefused: `tensor-missing`, `tensor-unexpected`.
    """
    expected = spec.tensors()
    missing = [name for name in expected if name not in checkpoint.entries]
    if missing:
        raise _missing(missing, checkpoint, spec)
    dropped: dict[str, str] = {}
    unexpected: list[str] = []
    for name in checkpoint.entries:
        if name in expected:
            continue
        reason = TIED if spec.tied and name == spec.head else leftover(name)
        if reason:
            dropped[name] = reason
        else:
            unexpected.append(name)
    if unexpected:
        raise InputRefused(
            "tensor-unexpected",
            _some(unexpected, f"not part of a {spec.family} model of {spec.layers} layers"),
            file=checkpoint.entries[unexpected[0]].file,
            tensor=unexpected[0],
        )
    return dropped


def leftover(name: str) -> str | None:
    """Why a tensor of this name is not exported; None where it may be a weight."""
    return next((reason for pattern, reason in LEFTOVERS if pattern.fullmatch(name)), None)


def _missing(missing: Sequence[str], checkpoint: Checkpoint, spec: ModelSpec) -> InputRefused:
    files = {entry.file for entry in checkpoint.entries.values()}
    hint = None
    if list(missing) == [spec.head]:
        hint = (
            "config.json says that head and embedding are not tied: if they are, set "
            "tie_word_embeddings to true; else save the model again with its head."
        )
    return InputRefused(
        "tensor-missing",
        _some(missing, "missing"),
        file=files.pop() if len(files) == 1 else INDEX,
        tensor=missing[0],
        hint=hint,
    )


def _some(names: Sequence[str], what: str) -> str:
    if len(names) == 1:
        return what
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} tensors are {what}: {shown}"
