"""Row readers of fused tensors: base, replacement and delta become float32 rows when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from exporter.adapters.base import Replacement
from exporter.adapters.tiles import tiles
from exporter.merge.base import MergePolicy
from exporter.merge.combined import CombinedDelta
from exporter.merge.kept import KeptMasks
from exporter.model import CheckedModel, RowReader
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
    """Replacements by tensor: at most one that replaces, any number that add."""

    replaced: dict[str, Replacement] = field(default_factory=dict)
    added: dict[str, list[tuple[Replacement, float]]] = field(default_factory=dict)

    def touches(self, tensor: str) -> bool:
        """Whether any adapter replaces the tensor or adds to it."""
        return tensor in self.replaced or tensor in self.added


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

    def __call__(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, fresh float32; beside them only one tile of the delta is in memory."""
        weight = self.base(r0, r1)
        mask = self.masks.mask(self.delta.module)
        for t0, t1 in tiles(r0, r1):
            kept = None if mask is None else mask.rows(t0, t1)
            part = weight[t0 - r0 : t1 - r0]
            weight[t0 - r0 : t1 - r0] = self.policy.merge(part, kept, self.delta.rows(t0, t1))
        return weight
