"""Two of four: the values and the bitmask that `sparse-24-bitmask` stores, from dense rows.

Format: `compressors/sparse_compressors/sparse_24_bitmask.py` of compressed-tensors 0.14.0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused

U8 = NDArray[np.uint8]

# Columns that stand in where a group has fewer than two non-zeros, bit i for column i. They are
# what `abs().topk(2)` of torch 2.13 on a CPU picks among equal zeros, and only that: nothing in
# the format asks for it, so other machines may pick others, and every reader must take any.
_STAND_IN: Mapping[int, int] = {
    0b0000: 0b1100,
    0b0001: 0b0101,
    0b0010: 0b1010,
    0b0100: 0b1100,
    0b1000: 0b1100,
}


def _table() -> tuple[U8, NDArray[np.bool_]]:
    """For each byte of non-zeros: the byte of kept columns, and whether a group has too many."""
    kept, over = np.zeros(256, np.uint8), np.zeros(256, np.bool_)
    for byte in range(256):
        for shift in (0, 4):
            group = byte >> shift & 15
            kept[byte] |= _STAND_IN.get(group, group) << shift
            over[byte] |= group.bit_count() > 2
    return kept, over


_KEPT, _OVER = _table()


def encode_two_four(values: NDArray[Any], *, tensor: str, row: int = 0) -> tuple[NDArray[Any], U8]:
    """`compressed` `[rows, in / 2]` in the type of `values`, and `bitmask` uint8 `[rows, in / 8]`.

    Args:
        values: `[rows, in]`, `in` a multiple of 8 (that vLLM asks for; the format, for 4).
        tensor: for the message.
        row: number of the first row, for the message.

    Zeros are written as +0.0: kernels of vLLM before 0.7.3 gave garbage on -0.0.

    Raises:
        InputRefused: `pattern-mismatch` where a group of four has more than two non-zeros.
            compressed-tensors drops the smaller ones without a word.
    """
    live = np.packbits(values != 0, axis=1, bitorder="little")
    over = _OVER[live]
    if over.any():
        at = int(over.argmax()) // live.shape[1]
        count = int(over.sum())
        raise InputRefused(
            "pattern-mismatch",
            f"{count} groups from row {row + at} on keep more than 2 of 4 weights",
            expected="2:4",
            tensor=tensor,
        )
    bitmask: U8 = _KEPT[live]
    kept = np.unpackbits(bitmask, axis=1, bitorder="little").view(np.bool_)
    compressed = values[kept].reshape(len(values), -1)
    compressed[compressed == 0] = 0
    return compressed, bitmask
