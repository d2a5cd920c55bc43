"""The delta of a pooling adapter: a small table, gathered into rows of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exporter.adapters.base import Delta, KeptRows
from exporter.adapters.pool_groups import Ints
from exporter.adapters.tiles import zero_outside
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class PoolDelta:
    """`D_ij = C[a(i), b(j)]`: constant on blocks, rank at most min(gout, gin)."""

    shape: tuple[int, int]
    table: Callable[[], F32]  # C [gout, gin]
    row_group: Callable[[], Ints]  # a, [out]
    column_group: Callable[[], Ints]  # b, [in]

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`; a gather, so the block size changes no bit."""
        # np.take, since `x[:, index]` would come out in column-major order.
        return np.take(self.table()[self.row_group()[r0:r1]], self.column_group(), axis=1)

    def low_rank(self) -> LowRank:
        """One-hot factor on the side of fewer groups, so that the product is C bit for bit."""
        table = self.table()
        if table.shape[0] < table.shape[1]:
            a = np.take(table, self.column_group(), axis=1)
            return LowRank(a, _one_hot(self.row_group(), table, 0), 1.0)
        columns = _one_hot(self.column_group(), table, 1)
        return LowRank(np.ascontiguousarray(columns.T), table[self.row_group()], 1.0)


def _one_hot(group: Ints, table: F32, axis: int) -> F32:
    """`[positions, groups]`, 1 where a position lies in a group."""
    hot = np.zeros((len(group), table.shape[axis]), np.float32)
    hot[np.arange(len(group)), group] = 1.0
    return hot


@dataclass(frozen=True)
class MaskedPoolDelta:
    """`M . D`, with the mask that the merge keeps, or where there is none the base's zeros."""

    inner: PoolDelta

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.inner.shape

    def bind(self, base: RowReader, kept: KeptRows | None) -> Delta:
        """On one weight."""
        return _BoundPool(self.inner, base, kept)


@dataclass(frozen=True)
class _BoundPool:
    inner: PoolDelta
    base: RowReader
    kept: KeptRows | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def rows(self, r0: int, r1: int) -> F32:
        block = self.inner.rows(r0, r1)
        zero_outside(block, self.base(r0, r1) != 0 if self.kept is None else self.kept(r0, r1))
        return block

    def low_rank(self) -> LowRank | None:
        """None: a mask has no factors."""
        return None
