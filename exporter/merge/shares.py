"""How much of a delta lies outside the mask, measured tile by tile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from exporter.adapters.base import Adapter
from exporter.adapters.tiles import tiles, zero_outside
from exporter.contract import Progress
from exporter.merge.base import DeltaShare
from exporter.merge.combined import CombinedDelta, combine
from exporter.merge.kept import KeptMasks
from exporter.merge.rows import Bases
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32


def delta_shares(
    checked: CheckedModel,
    adapters: Sequence[tuple[Adapter, float]],
    progress: Progress | None = None,
) -> list[DeltaShare]:
    """One `DeltaShare` for each adapted module, in the order of the adapters' modules.

    Raises:
        UsageError: see `combine`.
    """
    masks = KeptMasks(checked)
    return shares_of(combine(adapters, Bases(checked, masks).weight), masks, progress)


def shares_of(
    deltas: Mapping[str, CombinedDelta], masks: KeptMasks, progress: Progress | None
) -> list[DeltaShare]:
    """The same for combined deltas."""
    shares: list[DeltaShare] = []
    for done, (module, delta) in enumerate(deltas.items()):
        shares.append(_share(module, delta, masks))
        if progress is not None:
            progress("measure deltas", done + 1, len(deltas))
    return shares


def _share(module: str, delta: CombinedDelta, masks: KeptMasks) -> DeltaShare:
    mask = masks.mask(module)
    total = lost = 0.0
    new = 0
    for r0, r1 in tiles(0, delta.shape[0]):
        block = delta.rows(r0, r1)
        total += square_sum(block)
        if mask is not None:
            zero_outside(block, ~mask.rows(r0, r1))  # what is left lies outside
            lost += square_sum(block)
            new += int(np.count_nonzero(block))
    outside = math.sqrt(lost / total) if total else 0.0
    return DeltaShare(module, math.sqrt(total), outside, masks.density(module), new)


def is_zero_outside(delta: CombinedDelta, masks: KeptMasks) -> bool:
    """Whether a delta is zero wherever the mask prunes; ends at the first tile where not."""
    mask = masks.mask(delta.module)
    if mask is None:
        return True
    return not any(
        _any_outside(delta.rows(r0, r1), mask.rows(r0, r1)) for r0, r1 in tiles(0, delta.shape[0])
    )


def _any_outside(block: F32, kept: Bools) -> bool:
    return bool(np.any((block != 0) & ~kept))


def square_sum(values: F32) -> float:
    """Sum of squares in float64.

    Without BLAS: its dot product splits long vectors over threads, so the last bits of a report
    would follow the number of cores.
    """
    wide = values.reshape(-1).astype(np.float64)
    return float(np.einsum("i,i->", wide, wide))
