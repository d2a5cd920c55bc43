"""The value types of the packed layout, and two 4-bit codes a byte."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.sparsity.bits import U8
from exporter.store.dtypes import DType

I8 = NDArray[np.int8]


class ValueType(str, Enum):
    """How kept values are stored; `.value` is the name in config.json."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    @property
    def dtype(self) -> DType:
        """Type of the tensor `P.values`."""
        return _DTYPES[self]

    @property
    def codes(self) -> np.dtype[Any]:
        """Type of one unpacked value: that of `dtype`, but int8 for int4."""
        return np.dtype(np.int8) if self is ValueType.INT4 else self.dtype.numpy

    @property
    def step(self) -> int:
        """Columns that make one step of 16 rows: a 512-bit register of values (int4: of codes)."""
        return {16: 2, 32: 1}.get(self.bits, 4)

    @property
    def bits(self) -> int:
        """Bits of one stored value."""
        return 4 if self is ValueType.INT4 else 8 * self.dtype.nbytes

    @property
    def quantised(self) -> bool:
        """Whether `P.scales` stands beside the values."""
        return self in (ValueType.INT8, ValueType.INT4, ValueType.FP8)


_DTYPES = {
    ValueType.BF16: DType.BF16,
    ValueType.FP16: DType.F16,
    ValueType.FP32: DType.F32,
    ValueType.INT8: DType.I8,
    ValueType.INT4: DType.U8,
    ValueType.FP8: DType.F8_E4M3,
}


def join_nibbles(codes: I8) -> U8:
    """Codes -7..7, int8 `[..., 2 k]`, as bytes `[..., k]`: two's complement, low nibble first."""
    low, high = codes[..., 0::2].view(np.uint8), codes[..., 1::2].view(np.uint8)
    return (low & np.uint8(15)) | (high << np.uint8(4))


def split_nibbles(packed: U8) -> I8:
    """The inverse of `join_nibbles`: bytes `[..., k]` as int8 `[..., 2 k]`."""
    codes = np.empty((*packed.shape, 2), np.int8)
    # Shifting a signed byte right copies its sign, which is what widening needs.
    np.right_shift((packed << np.uint8(4)).view(np.int8), 4, out=codes[..., 0])
    np.right_shift(packed.view(np.int8), 4, out=codes[..., 1])
    return codes.reshape(*packed.shape[:-1], 2 * packed.shape[-1])
