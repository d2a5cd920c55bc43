"""Counts of one linear, gathered from packed row blocks in one pass, and the verdict on them."""

from __future__ import annotations

import numpy as np

from exporter.sparsity.bits import U8, packed_width, popcount
from exporter.sparsity.mask import Mask
from exporter.sparsity.nm import GROUPS, group_max
from exporter.sparsity.pattern import LinearPattern, linear_pattern

_BLOCK_BYTES = 1 << 18  # of packed bits: small enough to stay in a core's cache


class PatternCounter:
    """Takes packed rows `[*, ceil(in / 8)]` of a linear `[out, in]`; holds one row of its own."""

    def __init__(self, module: str, shape: tuple[int, int]) -> None:
        self._module = module
        self._shape = shape
        self._kept = 0
        self._full_rows = 0
        self._columns: U8 = np.zeros(packed_width(shape[1]), np.uint8)
        self._group_max = dict.fromkeys(GROUPS, 0)

    def add(self, bits: U8, kept: int | None = None) -> None:
        """Count a block of rows; `kept` saves the count of ones where it is known."""
        if not bits.size:
            return
        self._kept += popcount(bits) if kept is None else kept
        self._full_rows += int(np.count_nonzero(bits.max(axis=1)))
        self._columns |= np.bitwise_or.reduce(bits, axis=0)
        for m, most in group_max(bits).items():
            self._group_max[m] = max(self._group_max[m], most)

    def result(self) -> LinearPattern:
        """Counts and verdict over all blocks; every row must have been added once."""
        out, width = self._shape
        return linear_pattern(
            self._module,
            self._shape,
            kept=self._kept,
            zero_rows=out - self._full_rows,
            zero_columns=width - popcount(self._columns),
            group_max=self._group_max,
        )


def mask_pattern(module: str, mask: Mask) -> LinearPattern:
    """Counts and verdict of a mask."""
    counter = PatternCounter(module, (mask.out_features, mask.in_features))
    step = max(1, _BLOCK_BYTES // max(1, mask.bits.shape[1]))
    for r0 in range(0, mask.out_features, step):
        counter.add(mask.bits[r0 : r0 + step])
    return counter.result()
