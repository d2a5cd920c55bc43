"""Deltas on chosen rows or columns of a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32

Index = NDArray[np.int64]


@dataclass(frozen=True)
class ColumnsDelta:
    """`D[:, idx] = s V`, V `[out, k]`: chosen input channels (down, o)."""

    shape: tuple[int, int]
    index: Callable[[], Index]  # [k], rising
    values: RowReader  # of V
    scale: float

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`; a scatter, so the block size changes no bit."""
        block = np.zeros((r1 - r0, self.shape[1]), np.float32)
        block[:, self.index()] = self.values(r0, r1) * np.float32(self.scale)
        return block

    def low_rank(self) -> LowRank:
        """B = V and a one-hot A `[k, in]` (S2FT's frozen factor)."""
        return LowRank(
            one_hot(self.index(), self.shape[1]), self.values(0, self.shape[0]), self.scale
        )


@dataclass(frozen=True)
class RowsDelta:
    """`D[idx, :] = s V`, V `[k, in]`: chosen output rows (up, gate, v)."""

    shape: tuple[int, int]
    index: Callable[[], Index]
    values: RowReader
    scale: float

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`; reads only the chosen rows among them."""
        block = np.zeros((r1 - r0, self.shape[1]), np.float32)
        index = self.index()
        lo, hi = (int(i) for i in np.searchsorted(index, (r0, r1)))
        if lo < hi:
            block[index[lo:hi] - r0] = self.values(lo, hi) * np.float32(self.scale)
        return block

    def low_rank(self) -> LowRank:
        """A = V and a one-hot B `[out, k]`."""
        index = self.index()
        hot = np.ascontiguousarray(one_hot(index, self.shape[0]).T)
        return LowRank(self.values(0, len(index)), hot, self.scale)


def one_hot(index: Index, size: int) -> F32:
    """`[k, size]`, 1 where row i meets column `index[i]`."""
    hot = np.zeros((len(index), size), np.float32)
    hot[np.arange(len(index)), index] = 1.0
    return hot
