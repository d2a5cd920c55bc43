"""Symmetric scales: the smallest bfloat16 that holds the largest magnitude of a row or group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused, UsageError
from exporter.model import QuantKind
from exporter.store.dtypes import F32

TILE = 64  # columns; a group is a multiple, so that no tile of the packed layout has half of one


@dataclass(frozen=True)
class Grid:
    """What codes of a kind can be."""

    largest: int  # code; the smallest is its negative
    dtype: np.dtype[np.generic]


GRIDS: Mapping[QuantKind, Grid] = {
    "int8": Grid(127, np.dtype(np.int8)),
    "int4": Grid(7, np.dtype(np.int8)),
    # OCP 8-bit floating point 1.0, E4M3: 448 is the largest finite value.
    "fp8": Grid(448, np.dtype(ml_dtypes.float8_e4m3fn)),
}


def spans(width: int, group: int) -> Iterator[tuple[int, int]]:
    """Columns of each group of a row of `width`; the last group ends where the row does.

    Raises:
        UsageError: `target-option` for a group that is no multiple of 64.
    """
    if group < 0 or group % TILE:
        raise UsageError(
            "target-option", f"group={group}", expected=f"0 (a scale for each row), or n * {TILE}"
        )
    step = group or max(width, 1)
    for c0 in range(0, width, step):
        yield c0, min(c0 + step, width)


def scales_of(weight: F32, kind: QuantKind, group: int, tensor: str = "") -> F32:
    """Scales `[rows, G]` of rows `[rows, in]`: for each group the smallest bfloat16 at or above
    `max|w| / largest code`, and 1.0 where all its weights are 0.

    Raises:
        InputRefused: `value-overflow` where `code * scale` could leave float32.
        UsageError: `target-option`.
    """
    columns = [scale_of(weight[:, c0:c1], kind) for c0, c1 in spans(weight.shape[1], group)]
    found: F32 = np.stack(columns, axis=1)
    # A code may be rounded up by half a scale. Written so that NaN is refused too.
    if not (found <= np.finfo(np.float32).max / (GRIDS[kind].largest + 1)).all():
        raise InputRefused(
            "value-overflow",
            f"weights up to {np.abs(weight).max():.6g} do not fit {kind} codes with a scale",
            expected="weights below 2^127",
            tensor=tensor or None,
        )
    return found


def scale_of(weight: F32, kind: QuantKind) -> F32:
    """Scale `[rows]` of weights `[rows, n]` that share one in each row."""
    top: NDArray[np.float64] = np.abs(weight).max(axis=1, initial=0.0).astype(np.float64)
    largest = GRIDS[kind].largest
    # Cut to bfloat16, then one step up where that is too small: every product here is exact.
    bits = (top / largest).astype(np.float32).view(np.uint32) >> np.uint32(16)
    cut = (bits << np.uint32(16)).view(np.float32)
    bits += (cut.astype(np.float64) * largest < top).astype(np.uint32)
    found = (bits << np.uint32(16)).view(np.float32)
    found[top == 0] = 1.0
    return found
