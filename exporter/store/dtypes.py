"""Element types of safetensors files and the one way to and from float32.

Type names are those of the safetensors header (safetensors README, "Format").
"""

from __future__ import annotations

from enum import Enum

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused

F32 = NDArray[np.float32]


class DType(str, Enum):
    """A safetensors element type; `.value` is its name in a header."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    U64 = "U64"
    U32 = "U32"
    U16 = "U16"
    U8 = "U8"
    BOOL = "BOOL"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The little-endian numpy type of the same bytes."""
        return _NUMPY[self]

    @property
    def nbytes(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @property
    def is_weight(self) -> bool:
        """Whether a dense, unquantised weight may be stored in this type."""
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16)


_NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.F64: np.dtype("<f8"),
    DType.F32: np.dtype("<f4"),
    DType.F16: np.dtype("<f2"),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.I64: np.dtype("<i8"),
    DType.I32: np.dtype("<i4"),
    DType.I16: np.dtype("<i2"),
    DType.I8: np.dtype("i1"),
    DType.U64: np.dtype("<u8"),
    DType.U32: np.dtype("<u4"),
    DType.U16: np.dtype("<u2"),
    DType.U8: np.dtype("u1"),
    DType.BOOL: np.dtype("?"),
}


def to_float32(values: NDArray[np.generic]) -> F32:
    """`values` as a fresh, writable float32 array of the same shape.

    Exact for float32, float16 and bfloat16; float64 is rounded to nearest, ties to even.
    """
    if values.dtype == ml_dtypes.bfloat16:
        # A shift is the definition of bfloat16 and several times faster than the cast.
        wide = values.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return values.astype(np.float32)


def round_float32(values: F32, dtype: DType, *, tensor: str) -> NDArray[np.generic]:
    """`values` rounded once to `dtype`, to nearest, ties to even.

    Raises:
        InputRefused: `value-overflow` where a finite value leaves the range of `dtype`.
    """
    if dtype is DType.F32:
        return values
    with np.errstate(over="ignore"):
        out = values.astype(dtype.numpy)
    if _all_finite(out, dtype):
        return out
    lost = np.isfinite(values) & ~np.isfinite(out.astype(np.float32))
    if lost.any():
        worst = float(np.abs(values[lost]).max())
        raise InputRefused(
            "value-overflow",
            f"a value of {worst:.6g} does not fit {dtype.value}",
            expected=f"finite values of {dtype.value}",
            tensor=tensor,
        )
    return out


# Bits of the exponent; all set in infinities and NaN (IEEE 754-2019, 3.4).
_EXPONENT: dict[DType, int] = {DType.BF16: 0x7F80, DType.F16: 0x7C00}


def _all_finite(rounded: NDArray[np.generic], dtype: DType) -> bool:
    """Whether no value is infinite or NaN, by its bits: one pass where a cast back takes four."""
    exponent = _EXPONENT.get(dtype)
    if exponent is None or not rounded.size:
        return False
    magnitude = rounded.view(np.uint16) & np.uint16(0x7FFF)
    return int(magnitude.max()) < exponent
