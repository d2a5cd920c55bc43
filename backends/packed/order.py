"""The order of elements in a tile: rows and columns to tiles and back.

Column k of 64 and row r of 16 of a tile stand at e = (k // g) * 16 * g + r * g + k % g, where
g columns make one step (`ValueType.step`). docs/formats/packed.md, "Order in a tile".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TILE_ROWS, TILE_COLUMNS = 16, 64
TILE = TILE_ROWS * TILE_COLUMNS
BATCH = 1 << 18
"""Elements handled at once: what a second-level cache holds, and the bound on memory."""


def blocks_at_once(columns: int) -> int:
    """Row blocks of a matrix of `columns` columns that make one batch; at least 1."""
    return max(1, BATCH // (TILE_ROWS * columns))


def padded(rows: Array, tiles: int) -> Array:
    """`rows` `[n, in]` with zeros (False) up to whole tiles: `[16 * blocks, 64 * tiles]`."""
    high = -(-rows.shape[0] // TILE_ROWS) * TILE_ROWS
    if rows.shape == (high, tiles * TILE_COLUMNS):
        return np.ascontiguousarray(rows)
    whole = np.zeros((high, tiles * TILE_COLUMNS), rows.dtype)
    whole[: rows.shape[0], : rows.shape[1]] = rows
    return whole


def to_tiles(whole: Array, step: int) -> Array:
    """Whole tiles `[16 * blocks, 64 * tiles]` as a copy `[blocks, tiles, 1024]` in tile order."""
    lanes = _lanes(whole, step)
    blocks, tiles = whole.shape[0] // TILE_ROWS, whole.shape[1] // TILE_COLUMNS
    split = lanes.reshape(blocks, TILE_ROWS, tiles, TILE_COLUMNS // step)
    ordered = np.ascontiguousarray(split.transpose(0, 2, 3, 1))
    return ordered.view(whole.dtype).reshape(blocks, tiles, TILE)


def from_tiles(ordered: Array, step: int, out: Array) -> None:
    """Write tiles `[blocks, tiles, 1024]` as rows into `out` `[n, in]`, C-contiguous.

    n and in may end inside the last row block and column tile; what lies beyond is dropped.
    """
    blocks, tiles, _ = ordered.shape
    lanes = _lanes(ordered, step).reshape(blocks, tiles, TILE_COLUMNS // step, TILE_ROWS)
    rows = lanes.transpose(0, 3, 1, 2)
    if out.shape == (blocks * TILE_ROWS, tiles * TILE_COLUMNS):
        target = _lanes(out, step).reshape(blocks, TILE_ROWS, tiles, TILE_COLUMNS // step)
        target[...] = rows
        return
    whole = np.ascontiguousarray(rows).view(ordered.dtype)
    whole = whole.reshape(blocks * TILE_ROWS, tiles * TILE_COLUMNS)
    out[...] = whole[: out.shape[0], : out.shape[1]]


def _lanes(array: Array, step: int) -> Array:
    """The same memory with the elements of one row and step as one unsigned number."""
    return array.view(np.dtype(f"u{array.dtype.itemsize * step}"))
