"""Rule: every value is finite, in float32 too. The same pass counts zeros.

Works on the stored bit patterns as unsigned integers (IEEE 754; bfloat16 is the upper half of
a float32): no conversion, and -0.0 is a zero by definition of the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Layout:
    """Bit patterns of one float type, without the sign."""

    unsigned: np.dtype[np.unsignedinteger]
    beyond: int  # the least that is infinite in float32, the type everything is computed in
    least_normal: int

    @property
    def sign(self) -> int:
        return 1 << (8 * self.unsigned.itemsize - 1)


_LAYOUTS: dict[np.dtype[np.generic], _Layout] = {
    np.dtype(ml_dtypes.bfloat16): _Layout(np.dtype("<u2"), 0x7F80, 0x0080),
    np.dtype("<f2"): _Layout(np.dtype("<u2"), 0x7C00, 0x0400),
    np.dtype("<f4"): _Layout(np.dtype("<u4"), 0x7F80_0000, 0x0080_0000),
    # Halfway between the largest float32 and 2^128, which rounds up.
    np.dtype("<f8"): _Layout(np.dtype("<u8"), 0x47EF_FFFF_F000_0000, 0x0010 << 48),
}


@dataclass
class ValueCounts:
    """What was seen of one tensor so far."""

    values: int = 0
    nonzero: int = 0
    negative_zeros: int = 0
    denormals: int = 0


class Scanner:
    """Reads the values of one tensor block by block; `counts` is what was seen so far.

    Its memory is one block's, taken once: fresh arrays for every step cost more in page faults
    than all arithmetic.
    """

    def __init__(self, tensor: str, dtype: np.dtype[np.generic], file: str | None = None) -> None:
        self.counts = ValueCounts()
        self._tensor = tensor
        self._file = file
        self._layout = _LAYOUTS[dtype]
        self._magnitude = np.empty(0, self._layout.unsigned)
        self._where = np.empty(0, np.bool_)

    def scan(self, block: NDArray[np.generic], row: int = 0) -> Bools:
        """Where `block` (rows of axis 0 from `row` on, stored dtype) is not zero.

        The answer has the block's shape; the next call takes its memory.

        Raises:
            InputRefused: `value-not-finite` with the index of the first NaN or infinity;
                `value-overflow` with that of the first float64 beyond float32.
        """
        if block.size > self._magnitude.size:
            self._magnitude = np.empty(block.size, self._layout.unsigned)
            self._where = np.empty(block.size, np.bool_)
        if not block.size:
            return np.zeros(block.shape, np.bool_)
        kind, sign = self._layout.unsigned.type, self._layout.sign
        raw = block.view(self._layout.unsigned)
        magnitude = self._magnitude[: block.size].reshape(block.shape)
        where = self._where[: block.size].reshape(block.shape)
        np.bitwise_and(raw, kind(sign - 1), out=magnitude)
        if magnitude.max() >= self._layout.beyond:
            bad = magnitude >= kind(self._layout.beyond)
            raise _not_finite(block, bad, self._tensor, row, self._file)
        small = _count(np.less(magnitude, kind(self._layout.least_normal), out=where))
        if small:
            negative = _count(np.equal(raw, kind(sign), out=where))
            self.counts.negative_zeros += negative
        nonzero = np.not_equal(magnitude, kind(0), out=where)
        kept = _count(nonzero)
        self.counts.values += block.size
        self.counts.nonzero += kept
        self.counts.denormals += small - (block.size - kept)
        return nonzero


def _count(where: Bools) -> int:
    return int(np.count_nonzero(where))


def _not_finite(
    block: NDArray[np.generic], bad: Bools, tensor: str, row: int, file: str | None
) -> InputRefused:
    flat = int(bad.reshape(-1).argmax())
    index = [int(i) for i in np.unravel_index(flat, bad.shape)]
    if index:
        index[0] += row
    value = float(block.reshape(-1)[flat : flat + 1].astype(np.float64)[0])
    more = int(np.count_nonzero(bad)) - 1
    also = f" and {more} more near it" if more else ""
    found = f"{value:.6g} at {index}{also}"
    if math.isfinite(value):
        return InputRefused(
            "value-overflow",
            found,
            expected="values within float32, in which everything is computed",
            file=file,
            tensor=tensor,
            hint="Save the model in float32 and look where such a weight came from.",
        )
    return InputRefused(
        "value-not-finite", found, expected="finite values", file=file, tensor=tensor
    )
