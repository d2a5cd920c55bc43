"""Refuse parts that are not what their entry in config.json says. docs/formats/packed.md, "Checks".

Readers look nothing up twice: after this check every offset, count and value is in range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from backends.packed.order import BATCH, TILE, TILE_COLUMNS, TILE_ROWS, padded, to_tiles
from backends.packed.pack import slot_index
from backends.packed.spec import PackedLinear, Parts
from backends.packed.values import ValueType, split_nibbles
from exporter.errors import InputRefused
from exporter.sparsity.bits import byte_counts
from exporter.sparsity.mask import Bools

Array = NDArray[Any]
I64 = NDArray[np.int64]


def check(spec: PackedLinear, parts: Mapping[str, Array], module: str, file: str | None) -> None:
    """Every rule of the format on the parts of one linear. Peak memory is a few row blocks.

    Raises:
        InputRefused: `packed-invalid`, with the tensor and what is wrong with it.
    """
    _Check(spec, parts, module, file).run()


def check_index(
    spec: PackedLinear, parts: Mapping[str, Array], module: str, file: str | None
) -> None:
    """What `cut` relies on: shapes, counts of N:M groups, mask and offsets that agree.

    Neither values nor scales are read, so that a rank may check its own after the cut.

    Raises:
        InputRefused: `packed-invalid`.
    """
    rules = _Check(spec, parts, module, file)
    rules.shapes()
    rules.index()


class _Check:
    def __init__(self, spec: PackedLinear, parts: Parts, module: str, file: str | None) -> None:
        self.spec, self.parts, self.module, self.file = spec, parts, module, file

    def run(self) -> None:
        self.shapes()
        self.index()
        self.edges()
        self.values()
        if self.spec.values.quantised:
            self.scales()

    def refuse(self, part: str, found: str, expected: str) -> NoReturn:
        name = f"{self.module}.{part}" if part else self.module
        raise InputRefused("packed-invalid", found, expected=expected, file=self.file, tensor=name)

    def shapes(self) -> None:
        """Which parts there are, their types and shapes."""
        values = self.parts.get("values")
        half = 2 if self.spec.values is ValueType.INT4 else 1
        want = self.spec.tensors(0 if values is None else values.size * half)
        if self.spec.values is not ValueType.INT4:
            want["values"] = self.spec.tensors()["values"]
        for part, (dtype, shape) in want.items():
            array = self.parts.get(part)
            if array is None:
                self.refuse(part, "the tensor is missing", f"{dtype.value} {list(shape)}")
            if array.dtype != dtype.numpy or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                self.refuse(part, found, f"{dtype.value} {list(shape)}")
        for part in self.parts:
            if part not in want:
                self.refuse(part, "no such tensor belongs here", f"only {', '.join(want)}")

    def index(self) -> None:
        """Mask, offsets and starts; no value is read."""
        if self.spec.kind == "ragged":
            self.ragged()
        elif self.spec.kind == "nm":
            self.groups()

    def ragged(self) -> None:
        """Offsets and starts are those that follow from the mask, and so is the length."""
        counts = self.counts()
        self.total(int(counts.sum()))
        slots = counts + (counts & 1) if self.spec.values is ValueType.INT4 else counts
        offsets, starts = slot_index(slots)
        self.equal("offsets", offsets)
        self.equal("starts", starts)
        half = 2 if self.spec.values is ValueType.INT4 else 1
        if self.parts["values"].size * half != int(starts[-1]):
            found = f"{self.parts['values'].size * half} values"
            self.refuse("values", found, f"{int(starts[-1])}, as the mask has bits")

    def counts(self) -> I64:
        """Set bits of each tile: int64 `[R, C]`."""
        found = np.zeros((self.spec.row_blocks, self.spec.column_tiles), np.int64)
        for b0, mask in self.batches("mask"):
            found[b0 : b0 + len(mask)] = byte_counts(mask).sum(axis=-1, dtype=np.int64)
        return found

    def total(self, kept: int) -> None:
        if kept != self.spec.nnz:
            self.refuse("mask", f"{kept} bits are set", f"nnz = {self.spec.nnz} of config.json")

    def equal(self, part: str, want: Array) -> None:
        wrong = np.argwhere(self.parts[part] != want)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            found = f"{int(self.parts[part][at])} at {list(at)}"
            self.refuse(part, found, f"{int(want[at])}, as the mask has bits")

    def groups(self) -> None:
        """Exactly N bits in every group of M columns of every row."""
        n, m, step = self.spec.n, self.spec.m, self.spec.values.step
        table = _field_counts(step)
        for b0, mask in self.batches("mask"):
            # One row of `fields` holds the counts of 16 rows in one step, one to a byte.
            steps = table[mask].reshape(-1, m // step, 2 * step)
            total = steps[:, 0].copy()
            for i in range(1, m // step):  # numpy's sum over so short an axis takes five times this
                total += steps[:, i]
            fields = total.view(np.uint8)
            if (fields != n).any():
                group, row = (int(i) for i in np.argwhere(fields != n)[0])
                tile, inner = divmod(group, TILE_COLUMNS // m)
                block, column = divmod(tile, self.spec.column_tiles)
                place = f"row {(b0 + block) * TILE_ROWS + row}"
                place += f", columns from {column * TILE_COLUMNS + inner * m}"
                found = f"{int(fields[group, row])} bits of {m} at {place}"
                self.refuse("mask", found, f"{n} of {m} in every group, padding included")

    def edges(self) -> None:
        """Nothing stands outside [out, in]: no bit (ragged), no value (N:M), no nibble (int4)."""
        int4 = self.spec.values is ValueType.INT4
        if self.spec.kind == "dense":
            last = self.parts["values"][:, -1:]
            if int4 and self.spec.shape[1] % 2 and (last >> 4).any():
                self.refuse("values", "a padding nibble is not 0", "0 in the last high nibble")
            return
        for tiles, allowed in _edge_tiles(self.spec):
            bits = np.unpackbits(self.parts["mask"][tiles], axis=-1, bitorder="little").view(bool)
            outside = bits & ~allowed
            if self.spec.kind == "ragged":
                if outside.any():
                    self.refuse("mask", "a bit outside [out, in] is set", "0 in the padding")
                continue
            packed = self.parts["values"][tiles]
            codes = split_nibbles(packed) if int4 else packed
            beyond = outside[bits].reshape(codes.shape)
            if codes.view(f"u{codes.dtype.itemsize}")[beyond].any():
                self.refuse("values", "a value outside [out, in] is not 0", "0 in the padding")

    def values(self) -> None:
        """Every value finite, every code in range, zeros in int4 padding, nnz of N:M possible."""
        stored = 0
        for found in self.flat_values():
            stored += int(np.count_nonzero(found.view(f"u{found.dtype.itemsize}")))
            if why := _bad_value(found, self.spec.values):
                self.refuse("values", why, "finite values, codes of -127..127 (int4: -7..7)")
        if self.spec.kind == "nm" and stored > self.spec.nnz:
            self.refuse("values", f"{stored} values are not 0", f"nnz = {self.spec.nnz} at most")
        if self.spec.kind == "ragged" and self.spec.values is ValueType.INT4:
            self.padding_codes()

    def flat_values(self) -> Iterator[Array]:
        """The values in batches, 1-D, int4 unpacked."""
        flat = self.parts["values"].reshape(-1)
        for at in range(0, flat.size, BATCH):
            batch = flat[at : at + BATCH]
            yield split_nibbles(batch) if self.spec.values is ValueType.INT4 else batch

    def padding_codes(self) -> None:
        """The high nibble after the last code of each odd tile is 0."""
        counts = self.counts()
        ends = self.parts["starts"][:-1, None] + self.parts["offsets"] + counts
        last = ends[counts % 2 == 1] // 2
        if (self.parts["values"][last] >> 4).any():
            self.refuse("values", "a padding code is not 0", "0 after the last code of a tile")

    def scales(self) -> None:
        """Above 0, and small enough for every code times the scale to be finite."""
        raw = self.parts["scales"].view(np.uint16)
        # Positive numbers of bfloat16 are in the order of their bits; negative ones and NaN above.
        wrong = (raw == 0) | (raw > _most_scale(self.spec.values))
        if wrong.any():
            at = [int(i) for i in np.argwhere(wrong)[0]]
            found = f"{float(self.parts['scales'][tuple(at)])} at {at}"
            self.refuse("scales", found, "scales above 0, with finite weights for every code")

    def batches(self, part: str) -> Iterator[tuple[int, Array]]:
        """`(first row block, some row blocks of a part)`."""
        step = max(1, BATCH // (TILE * self.spec.column_tiles))
        for b0 in range(0, self.spec.row_blocks, step):
            yield b0, self.parts[part][b0 : b0 + step]


_LARGEST_CODE = {ValueType.INT8: 127, ValueType.INT4: 7, ValueType.FP8: 448}


def _most_scale(values: ValueType) -> int:
    """Bits of the largest bfloat16 that the largest code does not take out of float32."""
    most = np.float32(np.finfo(np.float32).max / _LARGEST_CODE[values])
    return int(most.view(np.uint32)) >> 16


def _field_counts(step: int) -> Array:
    """For each byte, the set bits of its 8 / step fields of `step` bits, one to a byte."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    fields = bits.reshape(256, 8 // step, step).sum(axis=2, dtype=np.uint8)
    return np.ascontiguousarray(fields).view(f"u{8 // step}").reshape(256)


def _edge_tiles(spec: PackedLinear) -> Iterator[tuple[tuple[slice, slice], Bools]]:
    """`(index of tiles, allowed bits [..., 1024])` of the last row block and column tile."""
    rows, columns = spec.shape[0] % TILE_ROWS, spec.shape[1] % TILE_COLUMNS
    if columns:
        allowed = _allowed(TILE_ROWS, columns, spec.values.step)
        for b0 in range(0, spec.row_blocks, BATCH // TILE):
            yield (slice(b0, b0 + BATCH // TILE), slice(-1, None)), allowed
    if rows:
        allowed = _allowed(rows, TILE_COLUMNS, spec.values.step)
        for c0 in range(0, spec.column_tiles, BATCH // TILE):
            yield (slice(-1, None), slice(c0, c0 + BATCH // TILE)), allowed


def _allowed(rows: int, columns: int, step: int) -> Bools:
    return to_tiles(padded(np.ones((rows, columns), np.bool_), 1), step).reshape(TILE)


def _bad_value(found: Array, values: ValueType) -> str | None:
    """What is wrong with some stored values; None where nothing is."""
    if values is ValueType.INT4:
        return "the code -8" if (found == -8).any() else None
    if values is ValueType.INT8:
        return "the code -128" if (found == -128).any() else None
    exponent = _EXPONENTS[values]
    raw = found.view(f"u{found.dtype.itemsize}")
    return "NaN or infinity" if ((raw & exponent) == exponent).any() else None


# Bits that are all set in NaN and infinity, and in no other number (fp8 e4m3 has NaN only).
_EXPONENTS = {
    ValueType.BF16: np.uint16(0x7F80),
    ValueType.FP16: np.uint16(0x7C00),
    ValueType.FP32: np.uint32(0x7F800000),
    ValueType.FP8: np.uint8(0x7F),
}
