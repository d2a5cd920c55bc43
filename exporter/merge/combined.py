"""The deltas of several adapters on one module, as one delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from exporter.adapters.base import Adapter, BaseBound, Delta, KeptRows
from exporter.errors import UsageError
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class CombinedDelta:
    """`sum_i weight_i * D_i(W)`, added in the order in which the adapters were given.

    Each delta is taken of the base's own weight, not of what the adapters before it made of it.
    """

    module: str
    parts: tuple[tuple[Delta | BaseBound, float], ...]
    masked: bool  # every part is zero outside the model's mask by construction
    base: RowReader  # of the weight
    kept: KeptRows | None = None  # the mask that the merge will keep, where it is decided

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.parts[0][0].shape

    def under(self, kept: KeptRows | None) -> CombinedDelta:
        """The same deltas, told the mask that the merge keeps."""
        return replace(self, kept=kept)

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32; the block size does not change a bit."""
        total: F32 | None = None
        for delta, weight in self._bound:
            block = delta.rows(r0, r1)
            if weight != 1.0:
                block *= np.float32(weight)
            total = block if total is None else np.add(total, block, out=total)
        if total is None:
            raise ValueError("a combined delta without parts")
        return total

    def onto(self, weight: F32, r0: int, r1: int) -> tuple[F32, F32]:
        """Two addends of the merged rows `[r0:r1]`: `weight` and the delta's rows.

        For a full fine-tune alone, at weight 1, they are -0.0 and its own rows V: in float32
        `W + (V - W)` rounds twice and can miss V, while `-0.0 + V` is V bit for bit. `weight` is
        fresh and may be overwritten.
        """
        if len(self.parts) == 1 and self.parts[0][1] == 1.0:
            result = getattr(self._bound[0][0], "result", None)
            if result is not None:
                weight.fill(-0.0)
                return weight, result(r0, r1)
        return weight, self.rows(r0, r1)

    @cached_property
    def _bound(self) -> tuple[tuple[Delta, float], ...]:
        return tuple((self._bind(d), w) for d, w in self.parts)

    def _bind(self, delta: Delta | BaseBound) -> Delta:
        # Both protocols are structural, so the method tells them apart.
        bind = getattr(delta, "bind", None)
        return cast("Delta", delta if bind is None else bind(self.base, self.kept))

    def low_rank(self) -> LowRank | None:
        """All factors side by side as one branch; None where a part has none."""
        found = [(delta.low_rank(), weight) for delta, weight in self._bound]
        branches = [(b, w) for b, w in found if b is not None]
        if len(branches) != len(found):
            return None
        if len(branches) == 1:
            branch, weight = branches[0]
            return LowRank(branch.a, branch.b, branch.scale * weight)
        a = np.concatenate([b.a for b, _ in branches], axis=0)
        scaled = [b.b * np.float32(b.scale * w) for b, w in branches]
        return LowRank(a, np.concatenate(scaled, axis=1), 1.0)


def combine(
    adapters: Sequence[tuple[Adapter, float]], base: Callable[[str], RowReader]
) -> Mapping[str, CombinedDelta]:
    """Deltas by module; `base` gives the rows of a module's weight before merging.

    Raises:
        UsageError: `usage` for a weight that is zero or not finite.
    """
    parts: dict[str, list[tuple[Delta | BaseBound, float]]] = {}
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
    return {m: CombinedDelta(m, tuple(found), masked[m], base(m)) for m, found in parts.items()}
