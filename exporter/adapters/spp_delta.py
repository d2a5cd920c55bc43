"""The delta of SPP: elementwise in the weight, so zeros stay without a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exporter.adapters.base import Delta, KeptRows
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class SppDelta:
    """`s * W . (rep(a) * c)`: row i takes row `16 i // out` of a. Zero where W is zero."""

    shape: tuple[int, int]
    a: Callable[[], F32]  # [16, in]
    c: Callable[[], F32]  # [out, 1] or [1, out]
    scale: float

    def bind(self, base: RowReader, kept: KeptRows | None) -> Delta:
        """On one weight; what the mask keeps plays no part, since W is zero outside."""
        del kept
        return _BoundSpp(self, base)


@dataclass(frozen=True)
class _BoundSpp:
    own: SppDelta
    base: RowReader

    @property
    def shape(self) -> tuple[int, int]:
        return self.own.shape

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`; elementwise, so the block size changes no bit."""
        block = self.base(r0, r1)
        a = self.own.a()
        column = self.own.c().reshape(-1)[r0:r1] * np.float32(self.own.scale)
        repeats = self.own.shape[0] // len(a)
        for g in range(r0 // repeats, -(-r1 // repeats)):
            lo, hi = max(g * repeats, r0) - r0, min((g + 1) * repeats, r1) - r0
            block[lo:hi] *= a[g] * column[lo:hi, None]
        return block

    def low_rank(self) -> LowRank | None:
        """None: a product with W has no factors."""
        return None
