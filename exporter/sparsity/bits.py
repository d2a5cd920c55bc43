"""Packed rows of bits: width, padding and how many are set.

Layout: uint8 `[rows, ceil(in / 8)]`, bit order of `numpy.packbits(..., "big")`, padding bits 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def packed_width(in_features: int) -> int:
    """Bytes of one packed row."""
    return -(-in_features // 8)


def nibble_counts(bits: U8) -> U8:
    """Ones of both halves of each byte, as the two halves of the result's bytes.

    Adds neighbours in place, first bits then pairs (Warren, Hacker's Delight, 5-1): numpy does
    these steps on whole vectors, where a table lookup is some ten times slower, and
    numpy.bitwise_count came with numpy 2.0 only.
    """
    pairs = bits - ((bits >> np.uint8(1)) & np.uint8(0x55))
    return (pairs & np.uint8(0x33)) + ((pairs >> np.uint8(2)) & np.uint8(0x33))


def byte_counts(bits: U8) -> U8:
    """Ones of each byte, uint8 of the same shape."""
    halves = nibble_counts(bits)
    return (halves >> np.uint8(4)) + (halves & np.uint8(15))


def popcount(bits: U8) -> int:
    """Number of ones in `bits` of any shape."""
    return int(byte_counts(bits).sum(dtype=np.int64))


def padding_row(bits: U8, in_features: int) -> int | None:
    """First row of `bits` with a padding bit that is not 0; None where there is none."""
    spare = -in_features % 8
    if not spare or not bits.shape[0]:
        return None
    bad = (bits[:, -1] & np.uint8((1 << spare) - 1)) != 0
    return int(bad.argmax()) if bad.any() else None
