"""Deltas of low-rank adapters, plain and masked, as producers of row blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exporter.adapters.tiles import TILE_ROWS, zero_outside
from exporter.model import LowRank
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32

# OpenBLAS runs a product of up to this many multiplications on the calling thread
# (interface/gemm.c: SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD). Larger ones would wake the
# other threads for microseconds of work each, which on a busy machine takes ten times as long,
# and would let the number of threads decide the order of sums.
_ONE_THREAD = 262_144


def _tile_columns(rank: int) -> int:
    """Columns of one product; a function of the rank alone, so that bits depend on nothing else."""
    return max(16, _ONE_THREAD // (TILE_ROWS * max(rank, 1)))


@dataclass(frozen=True)
class LowRankDelta:
    """`scale * B A` with A `[r, in]` and B `[out, r]`, float32 (Hu et al. 2021, eq. 3).

    `a` and `b` give the factors when called, so that an adapter of many modules does not lie
    in memory as float32.
    """

    shape: tuple[int, int]
    a: Callable[[], F32]
    b: Callable[[], F32]
    scale: float

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32 `[r1 - r0, in]`.

        A BLAS chooses its kernel, and with it the order of its sums, by the shape of the
        product, so the shape must not follow the block that the caller asks for: the product is
        taken in whole tiles at absolute rows and columns, and equal rows get equal bits.
        """
        start = r0 // TILE_ROWS * TILE_ROWS
        end = min(-(-r1 // TILE_ROWS) * TILE_ROWS, self.shape[0])
        a, b = self.a(), self.b()
        step = _tile_columns(a.shape[0])
        out = np.empty((max(end - start, 0), self.shape[1]), np.float32)
        for t in range(start, end, TILE_ROWS):
            scaled = b[t : t + TILE_ROWS] * np.float32(self.scale)
            tile = out[t - start : t - start + TILE_ROWS]
            for c in range(0, self.shape[1], step):
                np.matmul(scaled, a[:, c : c + step], out=tile[:, c : c + step])
        return out[r0 - start : r1 - start]

    def low_rank(self) -> LowRank | None:
        """The factors themselves."""
        return LowRank(self.a(), self.b(), self.scale)


@dataclass(frozen=True)
class MaskedLowRankDelta:
    """`scale * M . (B A)`: zero outside the mask by construction (LoSA, eq. 1)."""

    inner: LowRankDelta
    mask: Callable[[], Mask]

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.inner.shape

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32, +0.0 outside the mask."""
        block = self.inner.rows(r0, r1)
        zero_outside(block, self.mask().rows(r0, r1))
        return block

    def low_rank(self) -> LowRank | None:
        """None: a mask has no factors."""
        return None
