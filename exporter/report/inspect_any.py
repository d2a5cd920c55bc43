"""Linears of a checkpoint whose architecture we have no data file for.

Every 2-D `*.weight` in a float type counts, read as `[out, in]`, except embeddings, heads and
norms by their usual names. A model that stores `[in, out]` (GPT-2's Conv1D) shows N:M only
along the axis that it stores last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from exporter.check.dtypes import check_dtypes
from exporter.check.model import read_linear
from exporter.contract import Progress
from exporter.model import Note
from exporter.sparsity.pattern import LinearPattern
from exporter.store.checkpoint import Checkpoint
from exporter.store.masks import MasksFile, Shape

_NOT_LINEAR = re.compile(
    r"(^|[._])(embed\w*|\w*embedding\w*|wte|wpe|shared|lm_head|embed_out|output|score|"
    r"classifier|head|ln_?\w*|\w*norm\w*)$"
)


@dataclass(frozen=True)
class FoundLinear:
    """A linear's place in the model and its counts."""

    layer: int | None
    role: str
    pattern: LinearPattern


def read_any(
    checkpoint: Checkpoint, masks: Path | None, progress: Progress | None
) -> tuple[list[FoundLinear], list[Note]]:
    """Counts and verdict of every linear found, in the order of layers.

    Raises:
        InputRefused: `model-quantised`, `dtype-unsupported`, `value-not-finite`,
            `mask-invalid`, `mask-mismatch`.
    """
    check_dtypes(checkpoint)
    shapes = _find(checkpoint)
    file = MasksFile.open(masks, shapes) if masks is not None else None
    origin = masks.name if masks is not None else "zeros"
    found: list[FoundLinear] = []
    notes: list[Note] = []
    for done, (module, shape) in enumerate(shapes.items(), start=1):
        mask = file.mask(module) if file is not None else None
        pattern, new = read_linear(checkpoint, module, shape, mask, origin)
        found.append(FoundLinear(_layer(module), module.rpartition(".")[2], pattern))
        notes += new
        if progress is not None:
            progress("read linears", done, len(shapes))
    return found, notes


def _find(checkpoint: Checkpoint) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, entry in checkpoint.entries.items():
        module = name.removesuffix(".weight")
        linear = module != name and len(entry.shape) == 2 and not _NOT_LINEAR.search(module)
        if linear and entry.nbytes:
            shapes[module] = (entry.shape[0], entry.shape[1])
    return dict(sorted(shapes.items(), key=lambda item: _natural(item[0])))


def _layer(module: str) -> int | None:
    """The first number between dots; longer ones than any layer index are none."""
    return next((int(p) for p in module.split(".") if p.isdecimal() and len(p) < 6), None)


def _natural(module: str) -> list[tuple[int, str]]:
    """Sorts "layers.10" after "layers.9"."""
    return [(len(p) if p.isdecimal() else 0, p) for p in module.split(".")]
