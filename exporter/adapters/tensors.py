"""Tensors of one adapter file, read one at a time when asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused
from exporter.model import RowReader
from exporter.store.dtypes import F32, to_float32
from exporter.store.header import TensorEntry, read_stamped_header
from exporter.store.plainfile import open_stamped, read_into, stamp_file

_HELD = 4  # arrays kept at most: A and B of the module being merged, and of the one before
_HELD_BYTES = 64 << 20  # a larger one (a replaced embedding) is not kept at all


class TensorFile:
    """A safetensors file by its header; arrays are read on demand and few are held.

    Args:
        path: the file.
        label: how errors name it, "adapter-folder/adapter_model.safetensors".

    Raises:
        InputRefused: the codes of `stamp_file` and of `read_header`.
    """

    def __init__(self, path: Path, label: str) -> None:
        self._stamp = stamp_file(path, path.parent)
        self.label = label
        self.entries: dict[str, TensorEntry] = dict(read_stamped_header(self._stamp).entries)
        self._held: OrderedDict[str, F32] = OrderedDict()

    def raw(self, name: str, r0: int = 0, r1: int | None = None) -> NDArray[np.generic]:
        """Rows `[r0:r1]` of axis 0 in the stored dtype (scalars: whole).

        Raises:
            InputRefused: `input-unreadable` where the file has changed since it was opened.
        """
        entry = self.entries[name]
        shape, start = entry.shape, entry.start
        if shape:
            end = shape[0] if r1 is None else r1
            start += r0 * (entry.nbytes // max(shape[0], 1))
            shape = (end - r0, *shape[1:])
        stored = np.empty(shape, entry.dtype.numpy)
        fd = open_stamped(self._stamp)
        try:
            read_into(fd, start, stored.reshape(-1).view(np.uint8).data, self.label)
        finally:
            os.close(fd)
        return stored

    def flat(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Elements `[start:stop]` in row-major order, in the stored dtype.

        Raises:
            InputRefused: as `raw`.
        """
        entry = self.entries[name]
        stored = np.empty(stop - start, entry.dtype.numpy)
        fd = open_stamped(self._stamp)
        try:
            offset = entry.start + start * stored.itemsize
            read_into(fd, offset, stored.view(np.uint8).data, self.label)
        finally:
            os.close(fd)
        return stored

    def rows(self, name: str) -> RowReader:
        """A reader of fresh float32 rows; holds nothing."""
        self._require_weight(name)
        return lambda r0, r1: to_float32(self.raw(name, r0, r1))

    def float32(self, name: str) -> Callable[[], F32]:
        """A reader of the whole tensor as read-only float32; repeated calls are free.

        Raises:
            InputRefused: `dtype-unsupported`.
        """
        self._require_weight(name)
        return lambda: self._whole(name)

    def _whole(self, name: str) -> F32:
        held = self._held.get(name)
        if held is None:
            held = to_float32(self.raw(name))
            held.flags.writeable = False
            if held.nbytes <= _HELD_BYTES:
                self._held[name] = held
                while len(self._held) > _HELD:
                    self._held.popitem(last=False)
        return held

    def _require_weight(self, name: str) -> None:
        dtype = self.entries[name].dtype
        if not dtype.is_weight:
            raise InputRefused(
                "dtype-unsupported",
                f"stored as {dtype.value}",
                expected="F32, F16, BF16 or F64",
                file=self.label,
                tensor=name,
                hint="Save the adapter unquantised.",
            )


def largest_magnitude(tensors: TensorFile, name: str) -> float:
    """Largest absolute value of a tensor, in blocks of rows; 0.0 for an empty one.

    Raises:
        InputRefused: `value-not-finite`.
    """
    shape = tensors.entries[name].shape
    reader = tensors.rows(name)
    width = int(np.prod(shape[1:], dtype=np.int64)) if shape else 1
    step = max(1, (4 << 20) // max(width, 1))
    largest = 0.0
    for r0 in range(0, shape[0] if shape else 1, step):
        block = reader(r0, min(r0 + step, shape[0] if shape else 1))
        if not block.size:
            continue
        top = float(np.abs(block).max())  # NaN and inf both survive max
        if not np.isfinite(top):
            raise InputRefused(
                "value-not-finite", "NaN or infinity", file=tensors.label, tensor=name
            )
        largest = max(largest, top)
    return largest
