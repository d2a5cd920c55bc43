"""What quantisation changes: of the weights, and with calibration of each layer's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from exporter.adapters.tiles import tiles
from exporter.contract import Progress
from exporter.merge.energy import energy
from exporter.merge.workbench import BLOCK_ROWS, Workbench
from exporter.model import FusedModel, FusedTensor, Quantised
from exporter.quantise.rounding import Rounded, dequantise
from exporter.quantise.solve import Stored
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class ModuleLoss:
    """One quantised linear, `E = W' - W`."""

    method: str  # "gptq", or "round"
    weight: float  # ||E|| / ||W||
    weight_max: float  # max|E| / max|W|
    zeroed: int  # weights that were not zero and are now
    error: float | None = None  # tr(E H E^T) / tr(W H W^T); None where H was not measured
    error_rounded: float | None = None  # the same, had every weight only been rounded


@dataclass
class _Sums:
    change: float = 0.0
    weight: float = 0.0
    most: float = 0.0
    top: float = 0.0
    zeroed: int = 0
    energies: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])


def losses(
    merged: FusedModel,
    model: FusedModel,
    bench: Workbench | None = None,
    progress: Progress | None = None,
) -> dict[str, ModuleLoss]:
    """Losses of every quantised linear of `model`, which was `merged` before.

    Memory: one Gram matrix and a few blocks of rows.
    """
    found: dict[str, ModuleLoss] = {}
    todo = [t for t in model.tensors.values() if t.quantised is not None]
    for done, tensor in enumerate(todo):
        module = tensor.name.removesuffix(".weight")
        gram = bench.gram(module) if bench is not None else None
        found[module] = _loss(merged.tensors[tensor.name], tensor, gram() if gram else None)
        if progress is not None:
            progress("measure what quantising costs", done + 1, len(todo))
    return found


def _loss(before: FusedTensor, after: FusedTensor, gram: F32 | None) -> ModuleLoss:
    sums, quantised = _Sums(), after.quantised
    if quantised is None:
        raise ValueError(f"{after.name} is not quantised")
    solved = isinstance(quantised.block, Stored)
    for r0, r1 in tiles(0, before.shape[0], BLOCK_ROWS):
        weight, values = before.rows(r0, r1), after.rows(r0, r1)
        _weights(sums, weight, values)
        if gram is not None:
            sums.energies[0] += energy(weight, gram)
            sums.energies[1] += energy(values - weight, gram)
            if solved:
                sums.energies[2] += energy(_rounded(weight, quantised) - weight, gram)
    total, error, rounded = sums.energies
    return ModuleLoss(
        method="gptq" if solved else "round",
        weight=math.sqrt(sums.change / sums.weight) if sums.weight else 0.0,
        weight_max=sums.most / sums.top if sums.top else 0.0,
        zeroed=sums.zeroed,
        error=None if gram is None else _share(error, total),
        error_rounded=None if gram is None else _share(rounded if solved else error, total),
    )


def _weights(sums: _Sums, weight: F32, values: F32) -> None:
    change = values - weight
    sums.change += float(np.einsum("ij,ij->", change, change, dtype=np.float64))
    sums.weight += float(np.einsum("ij,ij->", weight, weight, dtype=np.float64))
    sums.most = max(sums.most, float(np.abs(change).max()))
    sums.top = max(sums.top, float(np.abs(weight).max()))
    sums.zeroed += int(np.count_nonzero((values == 0) & (weight != 0)))


def _rounded(weight: F32, quantised: Quantised) -> F32:
    block = Rounded(lambda r0, r1: weight[r0:r1], quantised.kind, quantised.group, "")
    return dequantise(*block(0, len(weight)), quantised.group)


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0
