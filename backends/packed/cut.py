"""Cut a rank's rows and columns out of a packed linear, by copying where tiles allow it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.packed.order import TILE_COLUMNS, TILE_ROWS
from backends.packed.pack import pack
from backends.packed.spec import PackedLinear, Parts, most_kept
from backends.packed.unpack import kept, unpack
from backends.packed.values import ValueType, split_nibbles
from exporter.errors import InputRefused
from exporter.sparsity.bits import popcount

Array = NDArray[Any]


class _Slice(NamedTuple):
    r0: int
    r1: int
    c0: int
    c1: int


def cut(
    spec: PackedLinear, parts: Parts, r0: int, r1: int, c0: int, c1: int
) -> tuple[PackedLinear, Parts]:
    """Rows `[r0, r1)` and columns `[c0, c1)` as a packed linear of their own, in fresh memory.

    At tile edges (rows at multiples of 16, columns at multiples of 64, or the matrix's end) only
    the bytes of the slice are read, so parts may be mapped files. Elsewhere the rows are
    unpacked, cut and packed; where that breaks groups of M, N:M becomes ragged. `nnz` of an N:M
    slice counts the values that are not +0, since a file does not tell a filler from a kept +0.
    Parts must have passed `check` or `check_index`; after the latter, the slice has to be checked.

    Raises:
        ValueError: a range that is empty or not in the matrix.
        InputRefused: `packed-cut` where a group that shares a scale would start amid a tile.
    """
    rows, columns = spec.shape
    if not (0 <= r0 < r1 <= rows and 0 <= c0 < c1 <= columns):
        raise ValueError(f"no slice [{r0}:{r1}, {c0}:{c1}] in {list(spec.shape)}")
    at = _Slice(r0, r1, c0, c1)
    group, scales = _scales(spec, parts, at)
    if spec.kind == "dense":
        small, found = _dense(spec, parts, at)
    elif _at_edges(spec, at):
        small, found = (_ragged if spec.kind == "ragged" else _nm)(spec, parts, at)
    else:
        small, found = _repacked(spec, parts, at)
    if scales is not None:
        small, found = replace(small, group=group), {**found, "scales": scales}
    return small, found


def _at_edges(spec: PackedLinear, at: _Slice) -> bool:
    if at.r0 % TILE_ROWS or at.c0 % TILE_COLUMNS:
        return False
    rows_end = at.r1 % TILE_ROWS == 0 or at.r1 == spec.shape[0]
    return rows_end and (at.c1 % TILE_COLUMNS == 0 or at.c1 == spec.shape[1])


def _tiles(at: _Slice) -> tuple[slice, slice]:
    """Row blocks and column tiles of a slice at tile edges."""
    return (
        slice(at.r0 // TILE_ROWS, -(-at.r1 // TILE_ROWS)),
        slice(at.c0 // TILE_COLUMNS, -(-at.c1 // TILE_COLUMNS)),
    )


def _small(spec: PackedLinear, at: _Slice, nnz: int) -> PackedLinear:
    """The slice's entry. Bits in the padding may be too many for it: `check` tells of those."""
    shape = (at.r1 - at.r0, at.c1 - at.c0)
    return replace(spec, shape=shape, nnz=min(nnz, most_kept(shape, spec.n, spec.m)), group=0)


def _nm(spec: PackedLinear, parts: Parts, at: _Slice) -> tuple[PackedLinear, Parts]:
    found = {part: parts[part][_tiles(at)].copy() for part in ("mask", "values")}
    raw = found["values"]
    codes = split_nibbles(raw) if spec.values is ValueType.INT4 else raw
    stored = int(np.count_nonzero(codes.view(f"u{codes.dtype.itemsize}")))
    whole = at == (0, spec.shape[0], 0, spec.shape[1])
    return _small(spec, at, spec.nnz if whole else stored), found


def _ragged(spec: PackedLinear, parts: Parts, at: _Slice) -> tuple[PackedLinear, Parts]:
    blocks, columns = _tiles(at)
    mask = parts["mask"][blocks, columns].copy()
    offsets = parts["offsets"][blocks]
    first = parts["starts"][blocks] + offsets[:, columns.start]
    if columns.stop < spec.column_tiles:
        last = parts["starts"][blocks] + offsets[:, columns.stop]
    else:
        last = parts["starts"][blocks.start + 1 : blocks.stop + 1]
    starts = np.zeros(len(first) + 1, np.int64)
    np.cumsum(last - first, out=starts[1:])
    half = 2 if spec.values is ValueType.INT4 else 1
    values = np.empty(int(starts[-1]) // half, spec.values.dtype.numpy)
    for block in range(len(first)):
        run = parts["values"][int(first[block]) // half : int(last[block]) // half]
        values[int(starts[block]) // half : int(starts[block + 1]) // half] = run
    moved = offsets[:, columns] - offsets[:, columns.start, None]
    found = {"mask": mask, "values": values, "offsets": moved, "starts": starts}
    return _small(spec, at, popcount(mask)), found


def _dense(spec: PackedLinear, parts: Parts, at: _Slice) -> tuple[PackedLinear, Parts]:
    small = _small(spec, at, (at.r1 - at.r0) * (at.c1 - at.c0))
    if spec.values is ValueType.INT4:
        codes = np.ascontiguousarray(unpack(spec, parts, at.r0, at.r1)[:, at.c0 : at.c1])
        found = pack(small, codes, scales=_ones(small))
        return small, {"values": found["values"]}
    return small, {"values": parts["values"][at.r0 : at.r1, at.c0 : at.c1].copy()}


def _repacked(spec: PackedLinear, parts: Parts, at: _Slice) -> tuple[PackedLinear, Parts]:
    marked = np.ascontiguousarray(kept(spec, parts, at.r0, at.r1)[:, at.c0 : at.c1])
    codes = np.ascontiguousarray(unpack(spec, parts, at.r0, at.r1)[:, at.c0 : at.c1])
    broken = spec.kind == "nm" and at.c0 % spec.m != 0
    base = replace(spec, kind="ragged", n=0, m=0) if broken else spec
    small = _small(base, at, int(np.count_nonzero(marked)))
    found = dict(pack(small, codes, marked, _ones(small)))
    found.pop("scales", None)
    return small, found


def _ones(small: PackedLinear) -> Array | None:
    """A stand-in for scales: the slice's own are cut apart from its codes."""
    return np.ones((small.shape[0], 1), np.float32) if small.values.quantised else None


def _scales(spec: PackedLinear, parts: Parts, at: _Slice) -> tuple[int, Array | None]:
    """Group and scales of a slice; `(0, None)` without quantised values."""
    if not spec.values.quantised:
        return 0, None
    scales, group = parts["scales"][at.r0 : at.r1], spec.group
    if not group:
        return 0, scales.copy()
    first, end = at.c0 // group, -(-at.c1 // group)
    if at.c0 % group == 0:
        return group, scales[:, first:end].copy()
    if end == first + 1:  # within one group: its scale is that of the row
        return 0, scales[:, first:end].copy()
    if at.c0 % TILE_COLUMNS == 0:
        by_tile = np.repeat(scales, group // TILE_COLUMNS, axis=1)
        return TILE_COLUMNS, by_tile[:, at.c0 // TILE_COLUMNS : -(-at.c1 // TILE_COLUMNS)].copy()
    raise InputRefused(
        "packed-cut",
        f"columns cut at {at.c0}, amid a group of {group} columns that share a scale",
        expected="a cut at a multiple of 64 columns, or one scale per row (group = 0)",
    )
