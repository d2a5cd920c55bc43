"""The slow reader of packed linears: plain Python, one element at a time, in float64.

Written from docs/formats/packed.md alone; it shares no line with the fast reader, not even the
names of types. It takes the entry of config.json as it stands and each tensor as bytes, so that
a mistake about a type or an order cannot hide in something both readers use.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

_TILE_ROWS, _TILE_COLUMNS, _MASK_BYTES = 16, 64, 128
_STEP = {"fp32": 1, "bf16": 2, "fp16": 2, "int8": 4, "int4": 4, "fp8": 4}
_SIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "fp8": 1}


class SlowLinear(NamedTuple):
    """A weight `[out][in]` as float64, the mask's bits, and which slots of values were read."""

    weight: list[list[float]]
    marked: list[list[bool]]  # kind dense: all True
    slots: list[int]  # in the order in which they were read


def read(entry: Mapping[str, Any], tensors: Mapping[str, bytes]) -> SlowLinear:
    """Every element of one linear.

    Args:
        entry: the linear's entry of `layers` in config.json.
        tensors: little-endian bytes by part: "mask", "values", "offsets", "starts", "scales".

    Raises:
        IndexError, struct.error: a tensor is too short.
    """
    rows, columns = entry["shape"]
    weight = [[0.0] * columns for _ in range(rows)]
    marked = [[False] * columns for _ in range(rows)]
    slots: list[int] = []
    for row in range(rows):
        for column in range(columns):
            slot = _slot(entry, tensors, row, column)
            if slot is None:
                continue
            marked[row][column] = True
            slots.append(slot)
            value = _value(entry["values"], tensors["values"], slot)
            weight[row][column] = value * _scale(entry, tensors, row, column)
    return SlowLinear(weight, marked, slots)


def _slot(
    entry: Mapping[str, Any], tensors: Mapping[str, bytes], row: int, column: int
) -> int | None:
    """Where the value of a position stands, counted in values; None where nothing is stored."""
    columns = entry["shape"][1]
    if entry["kind"] == "dense":
        # An int4 row begins at a byte, so an odd row is one code longer.
        width = columns + columns % 2 if entry["values"] == "int4" else columns
        return row * width + column
    tiles = math.ceil(columns / _TILE_COLUMNS)
    block, tile = row // _TILE_ROWS, column // _TILE_COLUMNS
    number = block * tiles + tile
    step = _STEP[entry["values"]]
    r, k = row % _TILE_ROWS, column % _TILE_COLUMNS
    element = (k // step) * _TILE_ROWS * step + r * step + k % step
    # Bit e % 8 of byte e // 8, lowest first, is bit e of the bytes as one little-endian number.
    mask = int.from_bytes(
        tensors["mask"][number * _MASK_BYTES : (number + 1) * _MASK_BYTES], "little"
    )
    if not mask >> element & 1:
        return None
    before = (mask & ((1 << element) - 1)).bit_count()
    if entry["kind"] == "nm":
        return number * (1024 * entry["n"] // entry["m"]) + before
    start = struct.unpack_from("<q", tensors["starts"], 8 * block)[0]
    return start + struct.unpack_from("<i", tensors["offsets"], 4 * number)[0] + before


def _value(kind: str, data: bytes, slot: int) -> float:
    """One stored value or code."""
    if kind == "int4":
        code = data[slot // 2] // 16 if slot % 2 else data[slot // 2] % 16
        return float(code - 16 if code > 7 else code)
    size = _SIZE[kind]
    raw = data[slot * size : (slot + 1) * size]
    if kind == "fp32":
        return struct.unpack("<f", raw)[0]
    if kind == "fp16":
        return struct.unpack("<e", raw)[0]
    if kind == "bf16":
        return _bf16(raw)
    if kind == "int8":
        return float(struct.unpack("<b", raw)[0])
    return _e4m3(raw[0])


def _bf16(raw: bytes) -> float:
    """bfloat16: the upper half of a float32."""
    return struct.unpack("<f", b"\0\0" + raw)[0]


def _e4m3(byte: int) -> float:
    """fp8 e4m3 without infinities (Micikevicius et al., arXiv:2209.05433, table 1)."""
    sign = -1.0 if byte >= 128 else 1.0
    exponent, fraction = byte // 8 % 16, byte % 8
    if exponent == 15 and fraction == 7:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(fraction / 8, -6)
    return sign * math.ldexp(1 + fraction / 8, exponent - 7)


def _scale(entry: Mapping[str, Any], tensors: Mapping[str, bytes], row: int, column: int) -> float:
    if "group" not in entry:
        return 1.0
    groups = math.ceil(entry["shape"][1] / entry["group"]) if entry["group"] else 1
    at = row * groups + (column // entry["group"] if entry["group"] else 0)
    return _bf16(tensors["scales"][2 * at : 2 * at + 2])
