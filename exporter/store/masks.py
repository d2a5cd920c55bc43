"""Masks files: which weights of each linear are kept. The format: docs/formats/masks.md."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from exporter.errors import InputRefused
from exporter.sparsity.bits import U8, packed_width, padding_row
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import DType
from exporter.store.header import TensorEntry, read_stamped_header
from exporter.store.plainfile import Stamp, open_stamped, read_into, stamp_file
from exporter.store.sink import FileRecord
from exporter.store.writer import SafetensorsWriter

SUFFIX = ".weight_mask"
Shape = tuple[int, int]


@dataclass(frozen=True)
class MasksFile:
    """A masks file whose header fits the model's linears; a mask is read when asked for."""

    stamp: Stamp
    shapes: Mapping[str, Shape]  # module -> (out, in)
    entries: Mapping[str, TensorEntry]  # by module

    @classmethod
    def open(cls, path: Path, shapes: Mapping[str, Shape]) -> MasksFile:
        """Read the header; exactly one mask for each module of `shapes`.

        Raises:
            InputRefused: `mask-invalid`; those of `read_stamped_header`.
        """
        stamp = stamp_file(path)
        header = read_stamped_header(stamp)
        entries: dict[str, TensorEntry] = {}
        for name, entry in header.entries.items():
            module = name.removesuffix(SUFFIX)
            if module == name or module not in shapes:
                expected = f"MODULE{SUFFIX} of a prunable linear of the model"
                raise _invalid(path.name, name, "no mask of this model", expected)
            _is_packed(path.name, entry, shapes[module])
            entries[module] = entry
        missing = [module for module in shapes if module not in entries]
        if missing:
            found = f"{len(missing)} of {len(shapes)} masks are missing"
            raise _invalid(
                path.name, missing[0] + SUFFIX, found, "a mask for every prunable linear"
            )
        return cls(stamp, shapes, entries)

    def mask(self, module: str) -> Mask:
        """The mask of one linear, packed.

        Raises:
            InputRefused: `mask-invalid` for a padding bit that is not 0, or an unpacked value
                other than 0 and 1; `input-unreadable` where the file was changed meanwhile.
        """
        entry, (out, width) = self.entries[module], self.shapes[module]
        raw = self._read(entry)
        if _is_packed(self.stamp.name, entry, (out, width)):
            row = padding_row(raw, width)
            if row is not None:
                found = f"a padding bit of row {row} is set"
                raise _invalid(
                    self.stamp.name, entry.name, found, f"bits past column {width} are 0"
                )
            return Mask(out, width, raw)
        if raw.max() > 1:
            found = f"the value {int(raw.max())}"
            raise _invalid(self.stamp.name, entry.name, found, "0 (pruned) or 1 (kept)")
        return Mask.from_bool(raw.view(np.bool_))

    def _read(self, entry: TensorEntry) -> U8:
        raw = np.empty(entry.nbytes, np.uint8)
        fd = open_stamped(self.stamp)
        try:
            read_into(fd, entry.start, raw.data, self.stamp.name)
        finally:
            os.close(fd)
        return raw.reshape(entry.shape)


def write_masks(path: Path, masks: Iterable[tuple[str, Mask]]) -> FileRecord:
    """Write packed masks `(module, mask)` into a new file; each is taken once, none is kept.

    Raises:
        ValueError: a module comes twice.
        InputRefused: `output-failed`.
    """
    try:
        # The header stands before the bits and needs all shapes: the bits wait on disk.
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            shapes = _spool(spool, masks)
            spool.seek(0)
            layout = [(module + SUFFIX, DType.U8, shape) for module, shape in shapes.items()]
            with SafetensorsWriter(path, layout) as writer:
                for name, _, shape in layout:
                    bits = np.frombuffer(spool.read(shape[0] * shape[1]), np.uint8)
                    writer.write(name, bits.reshape(shape))
                return writer.close()
    except OSError as error:
        raise InputRefused("output-failed", str(error), file=path.name) from error


def _spool(file: BinaryIO, masks: Iterable[tuple[str, Mask]]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for module, mask in masks:
        if module in shapes:
            raise ValueError(f"two masks for {module}")
        shapes[module] = (mask.out_features, packed_width(mask.in_features))
        file.write(mask.bits.tobytes())
    return shapes


def _is_packed(file: str, entry: TensorEntry, shape: Shape) -> bool:
    """Whether the bits are packed, told by type and shape alone."""
    packed = (shape[0], packed_width(shape[1]))
    as_packed = entry.dtype is DType.U8 and entry.shape == packed
    as_plain = entry.dtype in (DType.U8, DType.BOOL) and entry.shape == shape
    if as_packed == as_plain:
        found = f"{entry.dtype.value}{list(entry.shape)}"
        if as_packed:
            found += " can be packed bits or plain 0 and 1"
        expected = f"U8{list(packed)} of packed bits, or BOOL{list(shape)}"
        raise _invalid(file, entry.name, found, expected)
    return as_packed


def _invalid(file: str, tensor: str, found: str, expected: str) -> InputRefused:
    return InputRefused("mask-invalid", found, expected=expected, file=file, tensor=tensor)
