"""Row readers of fused tensors: base, replacement and delta become float32 rows when asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.adapters.base import Replacement
from exporter.adapters.tiles import tiles
from exporter.merge.base import MergePolicy
from exporter.merge.combined import CombinedDelta
from exporter.merge.kept import KeptMasks
from exporter.model import RowReader
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class BaseRows:
    """A tensor that no delta touches; replaced or added to as a whole where an adapter says so."""

    checkpoint: Checkpoint
    tensor: str  # name in the checkpoint
    sparse: bool = False  # a pruned linear: its zeros come out as +0.0
    replaced: Replacement | None = None
    added: tuple[tuple[Replacement, float], ...] = ()

    def __call__(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, fresh float32."""
        source: RowReader = self.replaced.rows if self.replaced else self._base
        values = source(r0, r1)
        for addition, weight in self.added:
            values += addition.rows(r0, r1) * np.float32(weight)
        if self.sparse:
            values += np.float32(0.0)  # a stored -0.0 becomes +0.0, nothing else changes
        return values

    def _base(self, r0: int, r1: int) -> F32:
        return self.checkpoint.rows(self.tensor, r0, r1)


@dataclass(frozen=True)
class MergedRows:
    """A weight with its delta in, by one policy: float32 sum, no rounding."""

    base: BaseRows
    delta: CombinedDelta
    policy: MergePolicy
    masks: KeptMasks

    def __call__(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, fresh float32; beside them only one tile of the delta is in memory."""
        weight = self.base(r0, r1)
        mask = self.masks.mask(self.delta.module)
        for t0, t1 in tiles(r0, r1):
            kept = None if mask is None else mask.rows(t0, t1)
            part = weight[t0 - r0 : t1 - r0]
            weight[t0 - r0 : t1 - r0] = self.policy.merge(part, kept, self.delta.rows(t0, t1))
        return weight
