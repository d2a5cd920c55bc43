"""Weights to the nearest codes, and codes back to weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.model import CodesAndScales, QuantKind, RowReader
from exporter.quantise.scales import GRIDS, scales_of, spans
from exporter.store.dtypes import F32

Codes = NDArray[np.generic]
Blocks = Callable[[int, int], CodesAndScales]  # of rows `[r0:r1)`


@dataclass(frozen=True)
class Rounded:
    """`Quantised.block` of a weight by rounding alone: a function of the rows, nothing kept."""

    rows: RowReader
    kind: QuantKind
    group: int
    tensor: str

    def __call__(self, r0: int, r1: int) -> CodesAndScales:
        """Codes and scales of rows `[r0:r1)`.

        Raises:
            InputRefused: `value-overflow`.
        """
        weight = self.rows(r0, r1)
        scales = scales_of(weight, self.kind, self.group, self.tensor)
        codes = np.empty(weight.shape, GRIDS[self.kind].dtype)
        for g, (c0, c1) in enumerate(spans(weight.shape[1], self.group)):
            codes[:, c0:c1] = nearest(weight[:, c0:c1], scales[:, g], self.kind)
        return codes, scales


def nearest(weight: F32, scale: F32, kind: QuantKind) -> Codes:
    """The code nearest to `weight / scale`, ties to even, for weights `[rows, n]` and the scale
    `[rows]` of each row. What lies beyond the largest code becomes that.

    The quotient is taken in float64, where no weight can be taken for a tie that is none.
    """
    grid = GRIDS[kind]
    exact = weight / scale.astype(np.float64)[:, None]
    np.clip(exact, -grid.largest, grid.largest, out=exact)
    if kind == "fp8":
        exact = exact.astype(grid.dtype).astype(np.float32)
        exact += np.float32(0.0)  # a small negative weight becomes +0, as an integer would
    else:
        np.rint(exact, out=exact)
    return exact.astype(grid.dtype)


def dequantise(codes: Codes, scales: F32, group: int) -> F32:
    """`code * scale`, float32 `[rows, in]`; exact, for a code has 8 bits and a scale 8."""
    weight = codes.astype(np.float32)
    for g, (c0, c1) in enumerate(spans(codes.shape[1], group)):
        weight[:, c0:c1] *= scales[:, g : g + 1]
    return weight


@dataclass(frozen=True)
class Dequantised:
    """`FusedTensor.rows` of a quantised weight."""

    block: Blocks
    group: int

    def __call__(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1)`, fresh float32."""
        return dequantise(*self.block(r0, r1), self.group)
