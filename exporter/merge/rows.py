"""Row readers of fused tensors: base, replacement and delta become float32 rows when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np

from exporter.adapters.base import Replacement
from exporter.adapters.tiles import TILE_ROWS, tiles
from exporter.merge.base import MaskMove, MergePolicy, RowMerge
from exporter.merge.combined import CombinedDelta
from exporter.merge.kept import KeptMasks
from exporter.model import CheckedModel, RowReader
from exporter.sparsity.bits import U8
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32

# Rows that one least-squares solve takes: enough that a product with H runs at full speed.
SOLVE_ROWS = 256


@dataclass(frozen=True)
class BaseRows:
    """A tensor that no delta touches; replaced or added to where an adapter says so."""

    checkpoint: Checkpoint
    tensor: str  # name in the checkpoint
    sparse: bool = False  # a pruned linear: its zeros come out as +0.0
    replaced: Replacement | None = None
    patches: tuple[Replacement, ...] = ()  # single rows
    added: tuple[tuple[Replacement, float], ...] = ()

    def __call__(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, fresh float32."""
        source: RowReader = self.replaced.rows if self.replaced else self._base
        values = source(r0, r1)
        for patch in self.patches:
            for i, row in enumerate(patch.indices):
                if r0 <= row < r1:
                    values[row - r0] = patch.rows(i, i + 1)[0]
        own = values.copy() if any(a.mode == "scale" for a, _ in self.added) else values
        for addition, weight in self.added:
            part = addition.rows(r0, r1)
            if addition.mode == "scale":
                part = own * part - own
            values += part * np.float32(weight)
        if self.sparse:
            values += np.float32(0.0)  # a stored -0.0 becomes +0.0, nothing else changes
        return values

    def _base(self, r0: int, r1: int) -> F32:
        return self.checkpoint.rows(self.tensor, r0, r1)


@dataclass
class Whole:
    """Replacements by tensor: at most one for each row, any number that add."""

    replaced: dict[str, Replacement] = field(default_factory=dict)
    patches: dict[str, list[Replacement]] = field(default_factory=dict)
    added: dict[str, list[tuple[Replacement, float]]] = field(default_factory=dict)

    def touches(self, tensor: str) -> bool:
        """Whether any adapter replaces the tensor or adds to it."""
        return any(tensor in found for found in (self.replaced, self.patches, self.added))

    def free(self, item: Replacement) -> bool:
        """Whether no adapter has replaced the rows of `item` before."""
        others = self.patches.get(item.tensor, [])
        if item.tensor in self.replaced or (item.mode == "replace" and others):
            return False
        return not any(set(item.indices) & set(o.indices) for o in others)


@dataclass(frozen=True)
class Bases:
    """The base's tensors as deltas find them: replaced and added to, not yet merged."""

    checked: CheckedModel
    masks: KeptMasks
    whole: Whole = field(default_factory=Whole)

    def rows(self, tensor: str) -> BaseRows:
        """Rows of one tensor; a tied head's are those of the embedding."""
        spec = self.checked.spec
        stored = spec.embedding if tensor == spec.head and self.checked.head_is_tied else tensor
        module = tensor.removesuffix(".weight")
        return BaseRows(
            self.checked.checkpoint,
            stored,
            sparse=tensor != module and not self.masks.is_dense(module),
            replaced=self.whole.replaced.get(tensor),
            patches=tuple(self.whole.patches.get(tensor, ())),
            added=tuple(self.whole.added.get(tensor, ())),
        )

    def weight(self, module: str) -> BaseRows:
        """Rows of a module's weight."""
        return self.rows(f"{module}.weight")


@dataclass(frozen=True)
class MergedRows:
    """A weight with its delta in, by one policy: float32 sum, no rounding."""

    base: BaseRows
    delta: CombinedDelta
    policy: MergePolicy
    masks: KeptMasks
    merge: RowMerge  # the policy's, for this module
    stored: RowReader | None = None  # where all rows were merged before

    def __call__(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, fresh float32; beside them only one tile of the delta is in memory."""
        if self.stored is not None:
            return self.stored(r0, r1)
        weight = self.base(r0, r1)
        mask = self.masks.mask(self.delta.module)
        for t0, t1 in tiles(r0, r1, self._step):
            kept = None if mask is None else mask.rows(t0, t1)
            part = weight[t0 - r0 : t1 - r0]
            part, delta = self.delta.onto(part, t0, t1)
            weight[t0 - r0 : t1 - r0] = self.merge.merge(part, kept, delta)
        return weight

    @property
    def _step(self) -> int:
        return SOLVE_ROWS if self.policy.solves else TILE_ROWS

    def trained(self, r0: int, r1: int) -> F32:
        """Rows of `W + D` with nothing dropped: what the adapter's training ran."""
        weight, delta = self.delta.under(None).onto(self.base(r0, r1), r0, r1)
        weight += delta
        return weight

    def new_mask(self) -> Mask:
        """The mask that a `MaskMove` chooses, tile by tile."""
        old = self.masks.mask(self.delta.module)
        move = cast("MaskMove", self.merge)  # structural: the policy's `moves_mask` says so
        if old is None:
            raise ValueError("a dense weight has no mask to move")
        parts: list[U8] = []
        for r0, r1 in tiles(0, old.out_features):
            weight, delta = self.delta.onto(self.base(r0, r1), r0, r1)
            parts.append(np.packbits(move.select(weight, old.rows(r0, r1), delta), axis=1))
        return Mask(old.out_features, old.in_features, np.concatenate(parts))
