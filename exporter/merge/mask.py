"""Policy `mask`: the part of the delta outside the mask is dropped."""

from __future__ import annotations

from typing import ClassVar

from exporter.adapters.tiles import add_kept
from exporter.merge.base import Elementwise, ModuleFacts, RowMerge
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32


class MaskPolicy(Elementwise):
    """`W' = M . (W + D)`: the model stays as sparse as it was and computes something else."""

    name: ClassVar[str] = "mask"
    keeps_mask: ClassVar[bool] = True
    keeps_branch: ClassVar[bool] = False
    drops_outside: ClassVar[bool] = True
    cost: ClassVar[str] = "stays as sparse and as fast; loses the share of the delta shown above"

    def bind(self, facts: ModuleFacts) -> RowMerge:
        """Itself."""
        del facts
        return self

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """`weight + delta` on kept positions, +0.0 elsewhere."""
        return add_kept(weight, kept, delta)
