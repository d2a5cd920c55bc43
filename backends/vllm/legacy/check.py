"""What must hold of `compressed`, `bitmask`, `shape` and `row_offsets` before they are decoded.

numpy only, so that every reader shares it. Source: `BitmaskTensor` and `Sparse24BitMaskTensor` of
compressed-tensors 0.14.0.1, which check nothing themselves.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from backends.vllm.legacy.encode import U8
from exporter.errors import InputRefused

_MOST = 1 << 31  # rows or columns of a matrix: beyond every model


class Checker:
    """The checks of one linear; holds what the messages name."""

    def __init__(self, module: str, file: str | None) -> None:
        self._module = module
        self._file = file

    def shape(self, raw: NDArray[Any]) -> tuple[int, int]:
        """`(out, in)` of an int64 `[2, 1]` (2:4) or `[2]` (unstructured)."""
        if raw.dtype != np.int64 or raw.shape not in ((2, 1), (2,)):
            self.refuse("shape", f"{raw.dtype}{list(raw.shape)}", "int64 [2, 1] or [2]")
        rows, columns = (int(v) for v in raw.reshape(-1))
        if not (0 < rows < _MOST and 0 < columns < _MOST):
            self.refuse("shape", f"{rows} x {columns}", "the sizes of a matrix")
        return rows, columns

    def parts(
        self,
        shape: tuple[int, int],
        compressed: tuple[int, ...],
        bitmask: tuple[int, ...],
        row_offsets: tuple[int, ...] | None,
    ) -> None:
        """Shapes of the tensors against that of the weight; `row_offsets` None for 2:4."""
        rows, columns = shape
        width = -(-columns // 8)
        if bitmask != (rows, width):
            self.refuse("bitmask", f"shape {list(bitmask)}", f"{[rows, width]}")
        if row_offsets is None:
            if columns % 4:
                self.refuse("shape", f"{columns} columns", "a multiple of 4, for 2:4")
            if compressed != (rows, columns // 2):
                found, want = list(compressed), [rows, columns // 2]
                self.refuse("compressed", f"shape {found}", f"{want}")
            return
        if len(compressed) != 1:
            self.refuse("compressed", f"shape {list(compressed)}", "one axis")
        if row_offsets != (rows,):
            self.refuse("row_offsets", f"shape {list(row_offsets)}", f"{[rows]}")

    def mask(self, bitmask: U8, columns: int, *, two_four: bool, row: int = 0) -> NDArray[np.bool_]:
        """Kept positions, bool `[rows, in]`; padding bits are 0, and 2:4 keeps two of each four.

        `row` is the number of the first, for the message.
        """
        bits = np.unpackbits(bitmask, axis=1, bitorder="little").view(np.bool_)
        if bits[:, columns:].any():
            at = int(bits[:, columns:].any(axis=1).argmax())
            self.refuse(
                "bitmask", f"row {row + at} sets bits beyond column {columns}", "zeros there"
            )
        kept = bits[:, :columns]
        if two_four:
            counts = np.count_nonzero(kept.reshape(len(kept), -1, 4), axis=2)
            if (counts != 2).any():
                at, group = np.unravel_index(int((counts != 2).argmax()), counts.shape)
                found = f"row {row + at}, group {group}: {counts[at, group]} of 4 kept"
                self.refuse("bitmask", found, "two in each group")
        return kept

    def offsets(self, kept: NDArray[np.bool_], row_offsets: NDArray[Any], values: int) -> None:
        """The values of row r begin at `row_offsets[r]`, and all values are of some row."""
        counts = np.count_nonzero(kept, axis=1)
        if int(counts.sum()) != values:
            self.refuse("compressed", f"{values} values", f"{int(counts.sum())}, one for each bit")
        want = np.cumsum(counts) - counts
        if row_offsets.dtype != np.int64 or not np.array_equal(row_offsets, want):
            differ = np.flatnonzero(row_offsets != want)
            row = int(differ[0]) if len(differ) else 0
            found = f"{row_offsets.dtype} {row_offsets[row]} for row {row}"
            self.refuse("row_offsets", found, f"int64 {want[row]}")

    def refuse(self, part: str, found: str, expected: str) -> NoReturn:
        """Raise `bitmask-invalid`."""
        name = f"{self._module}.{part}" if self._module else part
        raise InputRefused(
            "bitmask-invalid", found, expected=expected, file=self._file, tensor=name
        )
