"""The folder a pruning run writes: linears in any order, one in memory, and their masks."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.arch.model_spec import Linear
from exporter.check.blocks import blocks
from exporter.model import CheckedModel
from exporter.sparsity.bits import packed_width
from exporter.sparsity.mask import Bools, Mask
from exporter.store.checkpoint import TensorEntry
from exporter.store.dtypes import F32, round_float32
from exporter.store.masks import write_masks
from exporter.store.sink import output_failed
from exporter.store.writer import Layout, header_bytes

# In a folder of their own: beside the weights a second safetensors file would be ambiguous.
MASKS = Path("masks", "masks.safetensors")
_SPOOL = "masks.spool"


class PlacedFile:
    """A new file whose parts are written at known offsets, in any order.

    Raises:
        InputRefused: `output-failed`, from every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise output_failed(error, path) from error

    def put(self, offset: int, data: NDArray[np.generic]) -> None:
        """Write the bytes of a C-contiguous array at `offset`."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        try:
            while view:
                done = os.pwrite(self._fd, view[: 64 << 20], offset)
                offset, view = offset + done, view[done:]
        except OSError as error:
            raise output_failed(error, self._path, len(view)) from error

    def get(self, offset: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes at `offset`, that were written before."""
        return np.frombuffer(os.pread(self._fd, count, offset), np.uint8)

    def close(self, *, sync: bool = False) -> None:
        """Close; may be called twice."""
        if self._fd < 0:
            return
        try:
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            raise output_failed(error, self._path) from error
        finally:
            os.close(self._fd)
            self._fd = -1


class PrunedFolder:
    """`out` with the config, tokenizer and weights of `checked`, zeros in its linears, and masks.

    Types, names and shapes stay; shards become one file. Kept positions of each linear wait on
    disk, so that memory does not follow the model.
    """

    def __init__(self, checked: CheckedModel, out: Path) -> None:
        self._checked, self._out = checked, out
        self.kept: dict[str, int] = {}  # by module
        (out / MASKS).parent.mkdir()
        layout: Layout = [(e.name, e.dtype, e.shape) for e in checked.checkpoint.entries.values()]
        header = header_bytes(layout, {"format": "pt"})
        self._starts, at = {}, len(header)
        for name, dtype, shape in layout:
            self._starts[name] = at
            at += math.prod(shape) * dtype.nbytes
        self._linears = checked.spec.linears()
        self._bits, at = {}, 0
        for linear in self._linears:
            self._bits[linear.module] = at
            at += linear.out_features * packed_width(linear.in_features)
        self._weights = PlacedFile(out / "model.safetensors")
        self._spool = PlacedFile(out / _SPOOL)
        self._weights.put(0, np.frombuffer(header, np.uint8))

    def put(self, linear: Linear, kept: Bools, weight: F32 | None = None) -> None:
        """Write a linear: `weight` rounded once to the stored type, or the stored bytes; zeros
        (+0.0) outside `kept`; both `[out, in]`."""
        mask = Mask.from_bool(kept)
        self._spool.put(self._bits[linear.module], mask.bits)
        self.kept[linear.module] = mask.kept
        entry = self._checked.checkpoint.entries[linear.weight]
        if weight is not None:
            weight = np.where(kept, weight, np.float32(0))
            values = round_float32(weight, entry.dtype, tensor=linear.weight)
            stored = values.T if linear.transposed else values
            self._weights.put(self._starts[entry.name], stored)
            return
        self._copy(entry, kept.T if linear.transposed else kept)

    def finish(self) -> None:
        """Write everything that is no linear, the masks in the spec's order, and the sidecars.

        Raises:
            ValueError: a linear was never put.
        """
        missing = [li.module for li in self._linears if li.module not in self.kept]
        if missing:
            raise ValueError(f"{missing[0]} was never put")
        checkpoint = self._checked.checkpoint
        pruned = {linear.weight for linear in self._linears}
        for name, entry in checkpoint.entries.items():
            if name not in pruned:
                self._copy(entry, None)
        self._weights.close(sync=True)
        write_masks(self._out / MASKS, self._masks())
        self.close()
        (self._out / _SPOOL).unlink()
        shutil.copyfile(checkpoint.root / "config.json", self._out / "config.json")
        for sidecar in checkpoint.sidecars:
            (self._out / sidecar.name).parent.mkdir(exist_ok=True)
            shutil.copyfile(sidecar.path, self._out / sidecar.name)

    def close(self) -> None:
        """Drop the descriptors; may be called twice."""
        self._weights.close()
        self._spool.close()

    def _copy(self, entry: TensorEntry, kept: Bools | None) -> None:
        at, width = self._starts[entry.name], entry.nbytes // max(1, math.prod(entry.shape[:1]))
        if not entry.shape:
            self._weights.put(at, self._checked.checkpoint.view(entry.name).reshape(1))
            return
        for r0, rows in blocks(self._checked.checkpoint, entry.name):
            if kept is not None:
                rows[~kept[r0 : r0 + len(rows)]] = 0
            self._weights.put(at + r0 * width, rows)

    def _masks(self) -> Iterator[tuple[str, Mask]]:
        for linear in self._linears:
            out, width = linear.out_features, packed_width(linear.in_features)
            bits = self._spool.get(self._bits[linear.module], out * width).reshape(out, width)
            yield linear.module, Mask(out, linear.in_features, bits)
