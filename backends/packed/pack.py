"""Pack a linear into tiles: whole, or row block by row block for one that is large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.packed.order import TILE, TILE_COLUMNS, TILE_ROWS, blocks_at_once, padded, to_tiles
from backends.packed.spec import PackedLinear, Parts
from backends.packed.values import ValueType, join_nibbles
from exporter.sparsity.bits import U8, byte_counts
from exporter.sparsity.mask import Bools, Mask

Array = NDArray[Any]
I32, I64 = NDArray[np.int32], NDArray[np.int64]


class Index(NamedTuple):
    """Where the values of a ragged linear lie: known from its mask alone."""

    offsets: I32  # [R, C]
    starts: I64  # [R + 1]
    nnz: int


class Block(NamedTuple):
    """Packed row blocks; `mask` is empty for kind dense."""

    mask: U8  # [blocks, C, 128]
    values: Array  # as P.values, of these blocks only


def pack(
    spec: PackedLinear, values: Array, kept: Bools | None = None, scales: Array | None = None
) -> Parts:
    """All parts of one linear.

    Args:
        values: `[out, in]` in `spec.values.codes` (int4: codes -7..7 as int8). What stands where
            `kept` is False is not looked at.
        kept: bool `[out, in]`; None or not looked at for kind dense.
        scales: bfloat16, or float32 that bfloat16 holds exactly, `[out, G]`; quantised only.

    Raises:
        ValueError: arguments that do not belong to `spec`: a mistake of the calling program.
    """
    parts: dict[str, Array] = {}
    if spec.kind != "dense":
        if kept is None or kept.shape != spec.shape:
            raise ValueError(f"kind {spec.kind} needs the kept positions {list(spec.shape)}")
        parts["mask"] = np.concatenate(list(mask_chunks(spec, lambda r0, r1: kept[r0:r1])))
    rows = value_chunks(spec, lambda r0, r1: values[r0:r1], _rows_of(kept))
    parts["values"] = np.concatenate(list(rows))
    if spec.kind == "ragged" and kept is not None:
        found = index(spec, Mask.from_bool(kept))
        if found.nnz != spec.nnz:
            raise ValueError(f"{found.nnz} positions are kept, nnz is {spec.nnz}")
        parts["offsets"], parts["starts"] = found.offsets, found.starts
    if spec.values.quantised:
        parts["scales"] = pack_scales(spec, scales)
    return parts


def pack_scales(spec: PackedLinear, scales: Array | None) -> Array:
    """The part "scales" of some rows `[rows, G]`.

    Raises:
        ValueError: of another width, or values that bfloat16 does not hold exactly.
    """
    if scales is None or scales.ndim != 2 or scales.shape[1] != spec.scale_groups:
        raise ValueError(f"scales must be [rows, {spec.scale_groups}]")
    stored = scales.astype(spec.tensors(0)["scales"][0].numpy)
    if not np.array_equal(stored.astype(np.float32), scales.astype(np.float32)):
        raise ValueError("scales must be numbers of bfloat16")
    return stored


def index(spec: PackedLinear, mask: Mask) -> Index:
    """Offsets, starts and nnz of a ragged linear, in little memory beside the mask.

    `index(...).starts[-1]` is the number of slots, which `PackedLinear.tensors` asks for.
    """
    counts = tile_counts(spec, mask)
    slots = counts + (counts & 1) if spec.values is ValueType.INT4 else counts
    return Index(*slot_index(slots), int(counts.sum()))


def slot_index(slots: I64) -> tuple[I32, I64]:
    """Offsets `[R, C]` and starts `[R + 1]` of tiles with `slots` `[R, C]` stored values each."""
    ends = np.cumsum(slots, axis=1)
    starts = np.zeros(slots.shape[0] + 1, np.int64)
    np.cumsum(ends[:, -1], out=starts[1:])
    return (ends - slots).astype(np.int32), starts


def tile_counts(spec: PackedLinear, mask: Mask) -> I64:
    """Kept positions of every tile, int64 `[R, C]`."""
    found = np.zeros((spec.row_blocks, spec.column_tiles), np.int64)
    step = blocks_at_once(spec.shape[1]) * 8
    for b0 in range(0, spec.row_blocks, step):
        counts = byte_counts(mask.bits[b0 * TILE_ROWS : (b0 + step) * TILE_ROWS])
        whole = _padded_bytes(counts, spec.column_tiles)
        sums = whole.reshape(-1, TILE_ROWS, spec.column_tiles, 8).sum(axis=(1, 3), dtype=np.int64)
        found[b0 : b0 + len(sums)] = sums
    return found


def mask_chunks(spec: PackedLinear, kept: Callable[[int, int], Bools]) -> Iterator[U8]:
    """The part "mask" of a ragged or N:M linear, some row blocks at a time.

    Args:
        kept: kept positions of rows `[r0, r1)`: bool `[r1 - r0, in]`; `Mask.rows` is one.
    """
    for r0, r1 in _steps(spec):
        yield _pack_mask(spec, _marked(spec, kept(r0, r1)))


def value_chunks(
    spec: PackedLinear,
    values: Callable[[int, int], Array],
    kept: Callable[[int, int], Bools] | None = None,
) -> Iterator[Array]:
    """The part "values", some row blocks at a time.

    Args:
        values: rows `[r0, r1)` in `spec.values.codes`.
        kept: as for `mask_chunks`; not called for kind dense.
    """
    for r0, r1 in _steps(spec):
        yield pack_block(spec, values(r0, r1), None if kept is None else kept(r0, r1)).values


def pack_block(spec: PackedLinear, values: Array, kept: Bools | None = None) -> Block:
    """Mask and values of whole row blocks.

    Args:
        values: `[rows, in]` in `spec.values.codes`; rows a multiple of 16 but at the end.
        kept: bool of the same shape; not looked at for kind dense.

    Raises:
        ValueError: another type or width, no `kept`, or more than N kept in a group of M.
    """
    if values.dtype != spec.values.codes or values.shape[1:] != spec.shape[1:]:
        want = f"{spec.values.codes} [rows, {spec.shape[1]}]"
        raise ValueError(f"values are {values.dtype} {list(values.shape)}, not {want}")
    if spec.kind == "dense":
        return Block(np.zeros((0, spec.column_tiles, TILE // 8), np.uint8), _dense(spec, values))
    if kept is None or kept.shape != values.shape:
        raise ValueError("the kept positions must have the shape of the values")
    marked = _marked(spec, kept)
    whole = padded(values, spec.column_tiles)
    if spec.kind == "nm":  # a filler holds +0, whatever stands at a position that is not kept
        raw = whole.view(f"u{whole.dtype.itemsize}")
        whole = np.where(padded(kept, spec.column_tiles), raw, raw.dtype.type(0)).view(whole.dtype)
    bits = to_tiles(marked, spec.values.step)
    chosen = to_tiles(whole, spec.values.step).reshape(-1)[np.flatnonzero(bits)]
    packed = np.packbits(bits, axis=-1, bitorder="little")
    if spec.kind == "nm":
        chosen = chosen.reshape(*bits.shape[:2], TILE * spec.n // spec.m)
    elif spec.values is ValueType.INT4:
        chosen = _even_tiles(chosen, np.count_nonzero(bits, axis=-1).reshape(-1))
    return Block(packed, join_nibbles(chosen) if spec.values is ValueType.INT4 else chosen)


def _rows_of(kept: Bools | None) -> Callable[[int, int], Bools] | None:
    return None if kept is None else lambda r0, r1: kept[r0:r1]


def _steps(spec: PackedLinear) -> Iterator[tuple[int, int]]:
    step = blocks_at_once(spec.shape[1]) * TILE_ROWS
    for r0 in range(0, spec.shape[0], step):
        yield r0, min(r0 + step, spec.shape[0])


def _marked(spec: PackedLinear, kept: Bools) -> Bools:
    """Bits to be set, in whole tiles: the kept positions, and fillers for N:M."""
    whole = padded(kept, spec.column_tiles)
    if spec.kind != "nm":
        return whole
    groups = whole.reshape(-1, spec.m)
    counts = np.zeros(len(groups), np.uint8)
    for column in groups.view(np.uint8).T:  # ten times as fast as a sum over so short an axis
        counts += column
    if (counts > spec.n).any():
        raise ValueError(f"a group keeps {int(counts.max())}, more than {spec.n} of {spec.m}")
    short = np.flatnonzero(counts < spec.n)
    unset = ~groups[short]
    first = np.cumsum(unset, axis=1) <= (spec.n - counts[short])[:, None]
    full = groups.copy()
    full[short] |= unset & first
    return full.reshape(whole.shape)


def _pack_mask(spec: PackedLinear, marked: Bools) -> U8:
    return np.packbits(to_tiles(marked, spec.values.step), axis=-1, bitorder="little")


def _dense(spec: PackedLinear, values: Array) -> Array:
    if spec.values is not ValueType.INT4:
        return np.ascontiguousarray(values)
    even = np.zeros((values.shape[0], -(-values.shape[1] // 2) * 2), np.int8)
    even[:, : values.shape[1]] = values
    return join_nibbles(even)


def _even_tiles(codes: Array, counts: I64) -> Array:
    """`codes` of tiles with `counts` each, with a code 0 after each odd tile."""
    return np.insert(codes, np.cumsum(counts)[counts % 2 == 1], 0)


def _padded_bytes(rows: U8, tiles: int) -> U8:
    """Packed rows `[n, ceil(in / 8)]` with zeros up to whole tiles of 16 rows and 8 bytes."""
    whole = np.zeros((-(-rows.shape[0] // TILE_ROWS) * TILE_ROWS, tiles * TILE_COLUMNS // 8), "u1")
    whole[: rows.shape[0], : rows.shape[1]] = rows
    return whole
