"""Single values at sorted positions of a weight, read tile by tile from the adapter's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.tensors import TensorFile
from exporter.adapters.tiles import TILE_ROWS
from exporter.errors import InputRefused
from exporter.model import LowRank
from exporter.store.dtypes import F32, DType, to_float32

Ints = NDArray[np.int64]
_BLOCK = 1 << 20  # positions looked at in one go
_TYPES = (DType.I32, DType.I64, DType.F32)  # F32: PEFT on Windows


@dataclass(frozen=True)
class ScatterDelta:
    """Values at positions that are sorted by row, then column; zero elsewhere.

    Holds only where each tile of rows begins: an oracle has as many values as the weight.
    """

    shape: tuple[int, int]
    tensors: TensorFile
    indices: str  # tensor [2, K]
    values: str  # tensor [K]
    starts: Ints  # first entry of each tile of rows, and K

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32 `[r1 - r0, in]`."""
        out = np.zeros((max(r1 - r0, 0), self.shape[1]), np.float32)
        if r1 <= r0:
            return out
        first = int(self.starts[r0 // TILE_ROWS])
        last = int(self.starts[-(-r1 // TILE_ROWS)])
        at, to = positions(self.tensors, self.indices, first, last)
        inside = (at >= r0) & (at < r1)
        found = to_float32(self.tensors.flat(self.values, first, last))
        out[at[inside] - r0, to[inside]] = found[inside]
        return out

    def low_rank(self) -> LowRank | None:
        """None: its rank is not bounded."""
        return None


def positions(tensors: TensorFile, name: str, first: int, last: int) -> tuple[Ints, Ints]:
    """Rows and columns of the entries `[first:last]` of an index tensor `[2, K]`."""
    count = tensors.entries[name].shape[1]
    at = tensors.flat(name, first, last).astype(np.int64)
    to = tensors.flat(name, count + first, count + last).astype(np.int64)
    return at, to


def read_positions(tensors: TensorFile, name: str, shape: tuple[int, int]) -> Ints:
    """Check an index tensor `[2, K]` and give the first entry of each tile of rows, and K.

    Raises:
        InputRefused: `dtype-unsupported`; `adapter-invalid` for a position outside the weight,
            one that comes twice, or positions that are not sorted.
    """
    entry = tensors.entries[name]
    if entry.dtype not in _TYPES:
        raise InputRefused(
            "dtype-unsupported",
            f"positions stored as {entry.dtype.value}",
            expected=", ".join(t.value for t in _TYPES),
            file=tensors.label,
            tensor=name,
        )
    starts = np.zeros(-(-shape[0] // TILE_ROWS) + 1, np.int64)
    before = -1
    for first in range(0, entry.shape[1], _BLOCK):
        last = min(first + _BLOCK, entry.shape[1])
        at, to = positions(tensors, name, first, last)
        if min(at.min(), to.min()) < 0 or at.max() >= shape[0] or to.max() >= shape[1]:
            _refuse(tensors, name, f"a position outside of {list(shape)}")
        order = at * shape[1] + to
        if order[0] <= before or (np.diff(order) <= 0).any():
            _refuse(tensors, name, "positions that come twice or are not sorted")
        before = int(order[-1])
        starts[1:] += np.searchsorted(at, TILE_ROWS * np.arange(1, len(starts)))
    return starts


def _refuse(tensors: TensorFile, name: str, found: str) -> NoReturn:
    raise InputRefused(
        "adapter-invalid",
        found,
        expected="distinct positions, sorted by output and then by input",
        file=tensors.label,
        tensor=name,
        hint="Sort shira_indices and shira_weight alike, as PEFT writes them for a mask.",
    )
