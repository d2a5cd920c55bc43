"""Policy `exact`: the delta is zero outside the mask, or the base is dense. Nothing is lost."""

from __future__ import annotations

from typing import ClassVar

from exporter.adapters.tiles import add_kept
from exporter.merge.base import Elementwise, ModuleFacts, RowMerge
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32


class ExactPolicy(Elementwise):
    """`W' = M . (W + D)` where `(1 - M) . D = 0`; never chosen over a lossy merge."""

    name: ClassVar[str] = "exact"
    keeps_mask: ClassVar[bool] = True
    keeps_branch: ClassVar[bool] = False
    drops_outside: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing is lost; chosen by itself wherever it is possible"

    def bind(self, facts: ModuleFacts) -> RowMerge:
        """Itself."""
        del facts
        return self

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """`weight + delta`; a zero of the base stays, as +0.0."""
        return add_kept(weight, kept, delta)
