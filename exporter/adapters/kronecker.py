"""The Kronecker product of two matrices as a producer of row blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.adapters.tiles import TILE_ROWS
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class KroneckerDelta:
    """`scale * W1 (x) W2`: element `[i * out2 + k, j * in2 + l]` is `W1[i, j] * W2[k, l]`.

    Every element is one product of two, so that no sum depends on the block size; of W2 no more
    than a tile of rows is read at once.
    """

    shape: tuple[int, int]
    left: tuple[int, int]  # [out1, in1]
    right: tuple[int, int]  # [out2, in2]
    w1: RowReader
    w2: RowReader
    scale: float

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32 `[r1 - r0, in]`."""
        out = np.empty((max(r1 - r0, 0), self.shape[1]), np.float32)
        blocks = out.reshape(len(out), self.left[1], self.right[1])
        start = r0
        while start < r1:
            i, k = divmod(start, self.right[0])
            stop = min(r1, (i + 1) * self.right[0], start + TILE_ROWS)
            row = self.w1(i, i + 1)[0] * np.float32(self.scale)
            right = self.w2(k, k + stop - start)
            np.multiply(row[None, :, None], right[:, None, :], out=blocks[start - r0 : stop - r0])
            start = stop
        return out

    def low_rank(self) -> LowRank | None:
        """None: its rank is the product of the factors' ranks."""
        return None
