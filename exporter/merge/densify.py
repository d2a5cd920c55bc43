"""Policy `densify`: the whole delta is added, and the sparsity is given up."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from exporter.merge.base import Elementwise, ModuleFacts, RowMerge
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32


class DensifyPolicy(Elementwise):
    """`W' = W + D`, as every tool does that does not know of masks."""

    name: ClassVar[str] = "densify"
    keeps_mask: ClassVar[bool] = False
    keeps_branch: ClassVar[bool] = False
    drops_outside: ClassVar[bool] = False
    cost: ClassVar[str] = "loses no accuracy; the adapted linears become dense, as slow and large"

    def bind(self, facts: ModuleFacts) -> RowMerge:
        """Itself."""
        del facts
        return self

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """`weight + delta` everywhere."""
        del kept
        weight += delta
        weight += np.float32(0.0)  # -0.0 + 0.0 is +0.0
        return weight
