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
from exporter.store.checkpoint import TensorEntry
from exporter.store.dtypes import F32, to_float32
from exporter.store.header import read_header

_HELD = 4  # arrays kept at most: A and B of the module being merged, and of the one before
_HELD_BYTES = 64 << 20  # a larger one (a replaced embedding) is not kept at all


class TensorFile:
    """A safetensors file by its header; arrays are read on demand and few are held.

    Args:
        path: the file.
        label: how errors name it, "adapter-folder/adapter_model.safetensors".

    Raises:
        InputRefused: `input-missing`, and the header's codes.
    """

    def __init__(self, path: Path, label: str) -> None:
        if not path.is_file():
            raise InputRefused("input-missing", "the file is not there", file=label)
        self.path = path
        self.label = label
        self.entries: dict[str, TensorEntry] = dict(read_header(path).entries)
        self._held: OrderedDict[str, F32] = OrderedDict()

    def raw(self, name: str, r0: int = 0, r1: int | None = None) -> NDArray[np.generic]:
        """Rows `[r0:r1]` of axis 0 in the stored dtype (scalars: whole).

        Raises:
            InputRefused: `file-truncated` where the file has shrunk since its header was read.
        """
        entry = self.entries[name]
        shape = entry.shape
        first, stride = entry.start, entry.end - entry.start
        if shape:
            r1 = shape[0] if r1 is None else r1
            stride = stride // shape[0] if shape[0] else 0
            first += r0 * stride
            stride *= r1 - r0
            shape = (r1 - r0, *shape[1:])
        with self.path.open("rb") as file:
            file.seek(first, os.SEEK_SET)
            data = file.read(stride)
        if len(data) != stride:
            raise InputRefused(
                "file-truncated", "the tensor's bytes end early", file=self.label, tensor=name
            )
        return np.frombuffer(data, entry.dtype.numpy).reshape(shape)

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
