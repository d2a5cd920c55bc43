"""The fast reader of packed linears, row blocks at a time. Parts must have passed `check`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.packed.order import TILE, TILE_ROWS, blocks_at_once, from_tiles
from backends.packed.spec import PackedLinear, Parts
from backends.packed.values import ValueType, split_nibbles
from exporter.sparsity.bits import byte_counts
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32, to_float32

Array = NDArray[Any]


def unpack(spec: PackedLinear, parts: Parts, r0: int = 0, r1: int | None = None) -> Array:
    """Stored values or codes of rows `[r0, r1)`: `[rows, in]` in `spec.values.codes`.

    Positions that are not kept hold 0. Peak memory is the result and one batch.
    """
    stop = spec.shape[0] if r1 is None else r1
    out = np.empty((stop - r0, spec.shape[1]), spec.values.codes)
    fill(spec, parts, r0, stop, out)
    return out


def dense(spec: PackedLinear, parts: Parts, r0: int = 0, r1: int | None = None) -> F32:
    """The weight's rows `[r0, r1)` as float32: values, or code times scale, which is exact."""
    wide = to_float32(unpack(spec, parts, r0, r1))
    if spec.values.quantised:
        wide *= row_scales(spec, parts, r0, r1)
    return wide


def kept(spec: PackedLinear, parts: Parts, r0: int = 0, r1: int | None = None) -> Bools:
    """Kept positions of rows `[r0, r1)`: bool `[rows, in]`.

    Ragged: the mask. Dense: every position. N:M: those whose value is not +0, since the file
    does not tell a filler from a kept weight that is +0.
    """
    stop = spec.shape[0] if r1 is None else r1
    if spec.kind == "dense":
        return np.ones((stop - r0, spec.shape[1]), np.bool_)
    if spec.kind == "nm":
        codes = unpack(spec, parts, r0, stop)
        return codes.view(f"u{codes.dtype.itemsize}") != 0
    out = np.empty((stop - r0, spec.shape[1]), np.bool_)
    for b0, b1, rows, view in _batches(spec, r0, stop, out):
        bits = np.unpackbits(parts["mask"][b0:b1], axis=-1, bitorder="little").view(np.bool_)
        _place(spec, bits, rows, view)
    return out


def row_scales(spec: PackedLinear, parts: Parts, r0: int = 0, r1: int | None = None) -> F32:
    """Scales of rows `[r0, r1)`, one per element or row: float32 `[rows, in]` or `[rows, 1]`."""
    scales = to_float32(parts["scales"][r0:r1])
    return np.repeat(scales, spec.group, axis=1)[:, : spec.shape[1]] if spec.group else scales


def fill(spec: PackedLinear, parts: Parts, r0: int, r1: int, out: Array) -> None:
    """Write rows `[r0, r1)` into `out` `[r1 - r0, in]`, C-contiguous, in the bytes of the codes."""
    if spec.kind == "dense":
        rows = parts["values"][r0:r1]
        split = split_nibbles(rows)[:, : spec.shape[1]] if _nibbles(spec) else rows
        out[...] = split.view(out.dtype)
        return
    for b0, b1, rows, view in _batches(spec, r0, r1, out):
        _place(spec, tiles(spec, parts, b0, b1).view(out.dtype), rows, view)


def tiles(spec: PackedLinear, parts: Parts, b0: int, b1: int) -> Array:
    """Row blocks `[b0, b1)` in tile order, zeros included: `[b1 - b0, C, 1024]` of codes."""
    mask = parts["mask"][b0:b1]
    bits = np.unpackbits(mask.reshape(-1), bitorder="little").view(np.bool_)
    # An index list of one batch takes less time than numpy's own assignment by a bool array, and
    # numpy finds the set places of bool seven times as fast as those of uint8.
    at = np.flatnonzero(bits)
    raw = np.zeros(mask.shape[0] * mask.shape[1] * TILE, f"u{spec.values.codes.itemsize}")
    raw[at] = block_values(spec, parts, b0, b1).view(raw.dtype)
    return raw.view(spec.values.codes).reshape(mask.shape[0], mask.shape[1], TILE)


def block_values(spec: PackedLinear, parts: Parts, b0: int, b1: int) -> Array:
    """Values of the set bits of row blocks `[b0, b1)` in their order, 1-D, int4 unpacked."""
    values = parts["values"]
    if spec.kind == "nm":
        flat = values[b0:b1].reshape(-1)
        return split_nibbles(flat) if _nibbles(spec) else flat
    first, last = int(parts["starts"][b0]), int(parts["starts"][b1])
    if not _nibbles(spec):
        return values[first:last]
    codes = split_nibbles(values[first // 2 : last // 2])
    counts = byte_counts(parts["mask"][b0:b1]).sum(axis=-1, dtype=np.int64)
    begins = parts["starts"][b0:b1, None] - first + parts["offsets"][b0:b1]
    return np.delete(codes, (begins + counts)[counts % 2 == 1])


def _nibbles(spec: PackedLinear) -> bool:
    return spec.values is ValueType.INT4


def _place(spec: PackedLinear, ordered: Array, rows: tuple[int, int], out: Array) -> None:
    """Write rows `[rows[0], rows[1])` of the blocks `ordered` into `out`."""
    if rows[0] == 0:
        from_tiles(ordered, spec.values.step, out)
        return
    whole = np.empty((rows[1], spec.shape[1]), ordered.dtype)
    from_tiles(ordered, spec.values.step, whole)
    out[...] = whole[rows[0] :]


def _batches(
    spec: PackedLinear, r0: int, r1: int, out: Array
) -> list[tuple[int, int, tuple[int, int], Array]]:
    """`(b0, b1, rows within these blocks, their part of out)` for rows `[r0, r1)`."""
    step, found = blocks_at_once(spec.shape[1]), []
    for b0 in range(r0 // TILE_ROWS, -(-r1 // TILE_ROWS), step):
        b1 = min(b0 + step, -(-r1 // TILE_ROWS))
        top, end = max(r0, b0 * TILE_ROWS), min(r1, b1 * TILE_ROWS)
        rows = (top - b0 * TILE_ROWS, end - b0 * TILE_ROWS)
        found.append((b0, b1, rows, out[top - r0 : end - r0]))
    return found
