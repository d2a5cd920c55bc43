"""Rule: every value is finite. Zeros, -0.0 and denormals are counted in the same pass.

Works on the stored bit patterns as unsigned integers (IEEE 754; bfloat16 is the upper half of
a float32): no conversion, and -0.0 is a zero by definition of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Layout:
    """Bit patterns of one float type, without the sign: +inf and the least normal number."""

    unsigned: np.dtype[np.unsignedinteger]
    infinity: int
    least_normal: int

    @property
    def sign(self) -> int:
        return 1 << (8 * self.unsigned.itemsize - 1)


_LAYOUTS: dict[np.dtype[np.generic], _Layout] = {
    np.dtype(ml_dtypes.bfloat16): _Layout(np.dtype("<u2"), 0x7F80, 0x0080),
    np.dtype("<f2"): _Layout(np.dtype("<u2"), 0x7C00, 0x0400),
    np.dtype("<f4"): _Layout(np.dtype("<u4"), 0x7F80_0000, 0x0080_0000),
    np.dtype("<f8"): _Layout(np.dtype("<u8"), 0x7FF0 << 48, 0x0010 << 48),
}


@dataclass
class ValueCounts:
    """What was seen of one tensor so far."""

    values: int = 0
    nonzero: int = 0
    negative_zeros: int = 0
    denormals: int = 0


def scan(block: NDArray[np.generic], counts: ValueCounts, *, tensor: str, row: int) -> Bools:
    """Where `block` (rows of axis 0 from `row` on, stored dtype) is not zero, bool of its shape.

    Adds to `counts`.

    Raises:
        InputRefused: `value-not-finite` with the index of the first NaN or infinity.
    """
    layout = _LAYOUTS[block.dtype]
    raw = block.view(layout.unsigned)
    kind = layout.unsigned.type
    magnitude = raw & kind(layout.sign - 1)
    if magnitude.size and magnitude.max() >= layout.infinity:
        raise _not_finite(block, magnitude >= kind(layout.infinity), tensor, row)
    nonzero = magnitude != 0
    kept = int(np.count_nonzero(nonzero))
    zeros = magnitude.size - kept
    counts.values += magnitude.size
    counts.nonzero += kept
    counts.denormals += int(np.count_nonzero(magnitude < kind(layout.least_normal))) - zeros
    if zeros:
        counts.negative_zeros += int(np.count_nonzero(raw == kind(layout.sign)))
    return nonzero


def _not_finite(block: NDArray[np.generic], bad: Bools, tensor: str, row: int) -> InputRefused:
    flat = int(bad.reshape(-1).argmax())
    index = [int(i) for i in np.unravel_index(flat, bad.shape)]
    if index:
        index[0] += row
    value = float(block.reshape(-1)[flat : flat + 1].astype(np.float64)[0])
    more = int(np.count_nonzero(bad)) - 1
    also = f" and {more} more near it" if more else ""
    return InputRefused(
        "value-not-finite", f"{value} at {index}{also}", expected="finite values", tensor=tensor
    )
