"""What a merge costs by calibration: output error of each module, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from exporter.adapters.tiles import tiles, zero_outside
from exporter.contract import Progress
from exporter.merge.energy import energy
from exporter.merge.rows import MergedRows
from exporter.merge.workbench import BLOCK_ROWS, Workbench
from exporter.model import FusedModel
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class ModuleError:
    """`tr(E H E^T)` for `E = W' - W*`, with `W* = W + D` and `H = X^T X`: the squared error of the
    module's outputs over the calibration text, for inputs of the unmerged model.
    """

    error: float
    masked: float  # the same, had the delta only been masked
    total: float  # tr(W* H W*^T): the squared outputs themselves

    @property
    def relative(self) -> float:
        """`error / total`."""
        return self.error / self.total if self.total else 0.0

    @property
    def relative_masked(self) -> float:
        """`masked / total`."""
        return self.masked / self.total if self.total else 0.0


def module_errors(
    model: FusedModel, bench: Workbench, progress: Progress | None = None
) -> dict[str, ModuleError]:
    """Errors of every merged module that calibration measured; the others lose nothing.

    Memory: one Gram matrix and a few blocks of rows.
    """
    merged = [t.rows for t in model.tensors.values() if isinstance(t.rows, MergedRows)]
    found: dict[str, ModuleError] = {}
    for done, rows in enumerate(merged):
        gram = bench.gram(rows.delta.module)
        if gram is not None:
            found[rows.delta.module] = _error(rows, gram())
        if progress is not None:
            progress("sum output errors", done + 1, len(merged))
    return found


def mean_relative(errors: Mapping[str, ModuleError]) -> tuple[float, float]:
    """Mean over modules of the relative error, and of that of masking.

    Not the sum of errors over the sum of squared outputs: one module whose outputs are huge (the
    down projection that makes a model's massive activations) would be all that it shows.
    """
    count = max(1, len(errors))
    return (
        math.fsum(e.relative for e in errors.values()) / count,
        math.fsum(e.relative_masked for e in errors.values()) / count,
    )


def _error(rows: MergedRows, gram: F32) -> ModuleError:
    module = rows.delta.module
    mask = rows.masks.mask(module)
    error = masked = total = 0.0
    for r0, r1 in tiles(0, rows.delta.shape[0], BLOCK_ROWS):
        target = rows.trained(r0, r1)
        total += energy(target, gram)
        error += energy(rows(r0, r1) - target, gram)
        if mask is not None:
            zero_outside(target, ~mask.rows(r0, r1))  # what masking would drop
            masked += energy(target, gram)
    return ModuleError(error, masked, total)
