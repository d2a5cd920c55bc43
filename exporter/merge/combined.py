"""The deltas of several adapters on one module, as one delta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.adapters.base import Adapter, Delta
from exporter.errors import UsageError
from exporter.model import LowRank
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class CombinedDelta:
    """`sum_i weight_i * D_i`, added in the order in which the adapters were given."""

    module: str
    parts: tuple[tuple[Delta, float], ...]
    masked: bool  # every part is zero outside the model's mask by construction

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.parts[0][0].shape

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32; the block size does not change a bit."""
        total: F32 | None = None
        for delta, weight in self.parts:
            block = delta.rows(r0, r1)
            if weight != 1.0:
                block *= np.float32(weight)
            total = block if total is None else np.add(total, block, out=total)
        if total is None:
            raise ValueError("a combined delta without parts")
        return total

    def low_rank(self) -> LowRank | None:
        """All factors side by side as one branch; None where a part has none."""
        found = [(delta.low_rank(), weight) for delta, weight in self.parts]
        branches = [(b, w) for b, w in found if b is not None]
        if len(branches) != len(found):
            return None
        if len(branches) == 1:
            branch, weight = branches[0]
            return LowRank(branch.a, branch.b, branch.scale * weight)
        a = np.concatenate([b.a for b, _ in branches], axis=0)
        scaled = [b.b * np.float32(b.scale * w) for b, w in branches]
        return LowRank(a, np.concatenate(scaled, axis=1), 1.0)


def combine(adapters: Sequence[tuple[Adapter, float]]) -> Mapping[str, CombinedDelta]:
    """Deltas by module.

    Raises:
        UsageError: `usage` for a weight that is zero or not finite.
    """
    parts: dict[str, list[tuple[Delta, float]]] = {}
    masked: dict[str, bool] = {}
    for adapter, weight in adapters:
        if not math.isfinite(weight) or weight == 0.0:
            raise UsageError(
                "usage",
                f"weight {weight} of adapter {adapter.name}",
                expected="a finite weight other than 0",
            )
        for module, delta in adapter.deltas.items():
            parts.setdefault(module, []).append((delta, weight))
            masked[module] = masked.get(module, True) and adapter.masked
    return {m: CombinedDelta(m, tuple(found), masked[m]) for m, found in parts.items()}
