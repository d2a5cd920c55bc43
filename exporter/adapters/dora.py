"""DoRA: a low-rank delta whose rows, together with the weight's, get trained lengths.

`W' = diag(m / ||W + s B A||_row) (W + s B A)` (Liu et al. 2024, eq. 5; peft/tuners/lora/dora.py,
`DoraLinearLayer`). On an embedding `[vocab, hidden]` PEFT takes the norm of each column, so m is
`[hidden]` (`DoraEmbeddingLayer`). Under a mask that the merge keeps, `M . (B A)` stands for B A
in the norm and in the sum: the rows of what is left get the trained lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.base import KeptRows
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.tiles import TILE_ROWS, tiles, zero_outside
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32

_F64 = NDArray[np.float64]


@dataclass(frozen=True)
class DoraDelta:
    """DoRA's delta, to be bound to a weight.

    Args:
        inner: `s B A`.
        magnitude: m, float32, `[out]`, or `[in]` with `by_column`.
        by_column: the norms are of columns (an embedding).
    """

    inner: LowRankDelta
    magnitude: Callable[[], F32]
    by_column: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.inner.shape

    def bind(self, base: RowReader, kept: KeptRows | None) -> BoundDora:
        """The delta on `base`, under `kept` where the merge will keep that mask."""
        return BoundDora(self, base, kept)


@dataclass(frozen=True)
class BoundDora:
    """DoRA on one weight. All sums are taken in float64, over whole tiles at absolute rows."""

    delta: DoraDelta
    base: RowReader
    kept: KeptRows | None

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.delta.shape

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]` of `W' - W`, float32."""
        return self._blocks(r0, r1, lambda weight, result: result - weight)

    def result(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]` of W' itself, rounded once."""
        return self._blocks(r0, r1, lambda weight, result: result)

    def low_rank(self) -> LowRank | None:
        """None: it depends on the weight."""
        return None

    def _blocks(self, r0: int, r1: int, finish: Callable[[_F64, _F64], _F64]) -> F32:
        out = np.empty((r1 - r0, self.shape[1]), np.float32)
        magnitude = self.delta.magnitude().astype(np.float64)
        for t0, t1 in tiles(r0, r1):
            start = t0 // TILE_ROWS * TILE_ROWS
            weight, total = self._sum(start)
            if self.delta.by_column:
                scales = _ratio(magnitude, self._column_norms)
            else:
                norms = np.sqrt(np.square(total).sum(axis=1))
                scales = _ratio(magnitude[start : start + len(total)], norms)[:, None]
            block = finish(weight, total * scales)
            out[t0 - r0 : t1 - r0] = block[t0 - start : t1 - start]
        return out

    def _sum(self, start: int) -> tuple[_F64, _F64]:
        """W, and `W + s M . (B A)`, of the tile that begins at row `start`."""
        end = min(start + TILE_ROWS, self.shape[0])
        product = self.delta.inner.rows(start, end)
        if self.kept is not None:
            zero_outside(product, self.kept(start, end))
        weight = self.base(start, end).astype(np.float64)
        return weight, weight + product

    @cached_property
    def _column_norms(self) -> _F64:
        squares = np.zeros(self.shape[1])
        for start in range(0, self.shape[0], TILE_ROWS):
            squares += np.square(self._sum(start)[1]).sum(axis=0)
        return np.sqrt(squares)


def _ratio(magnitude: _F64, norms: _F64) -> _F64:
    """Factors of rows (of columns on an embedding).

    One without any value has no direction that m could stretch: its factor is 1, and it stays
    zero, as rows do that were pruned away (PEFT divides by zero there).
    """
    return np.divide(magnitude, norms, out=np.ones_like(norms), where=norms > 0.0)
