"""Policy `separate`: the base stays as it is, and the low-rank branch stays in the graph."""

from __future__ import annotations

from typing import ClassVar

from exporter.adapters.tiles import zero_outside
from exporter.merge.base import Elementwise, ModuleFacts, RowMerge
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32


class SeparatePolicy(Elementwise):
    """`y = x W^T + scale * (x A^T) B^T`; needs factors, so not for a delta with a mask."""

    name: ClassVar[str] = "separate"
    keeps_mask: ClassVar[bool] = True
    keeps_branch: ClassVar[bool] = True
    drops_outside: ClassVar[bool] = False
    cost: ClassVar[str] = "loses nothing; two more small matrix products for each adapted linear"

    def bind(self, facts: ModuleFacts) -> RowMerge:
        """Itself."""
        del facts
        return self

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """The base's rows, untouched but for +0.0 outside the mask."""
        del delta
        if kept is not None:
            zero_outside(weight, kept)
        return weight
