"""Initialisers in a file beside the graph: records that are checked, bytes read by offset.

Folders may come from strangers (`sparse-export verify`), so nothing leads out of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.contract import StoredTensor
from exporter.errors import VerificationFailed
from exporter.limits import LIMITS
from exporter.store.dtypes import F32, DType

_STRIDE = 1 << 20
_TYPES: dict[int, DType] = {
    onnx.TensorProto.FLOAT: DType.F32,
    onnx.TensorProto.BFLOAT16: DType.BF16,
    onnx.TensorProto.UINT8: DType.U8,
    onnx.TensorProto.INT32: DType.I32,
    onnx.TensorProto.INT64: DType.I64,
}


def broken(found: str, expected: str, tensor: str | None = None) -> VerificationFailed:
    """The error of a graph that is not whole."""
    return VerificationFailed(
        "verify-structure", found, expected=expected, file="model.onnx", tensor=tensor
    )


def record(folder: Path, tensor: onnx.TensorProto) -> Record:
    """What a graph says of an initialiser, checked against its file.

    Raises:
        VerificationFailed: `verify-structure`.
    """
    name, shape = tensor.name, tuple(tensor.dims)
    dtype = _TYPES.get(tensor.data_type)
    if dtype is None:
        raise broken(f"element type {tensor.data_type}", "float32", name)
    # The values of a ragged linear are one axis of as many as a matrix has at most.
    most = LIMITS.dim if len(shape) > 1 else LIMITS.dim**2
    if not 1 <= len(shape) <= LIMITS.rank or any(d < 1 or d > most for d in shape):
        raise broken(f"shape {shape}", "positive dimensions", name)
    entries = {e.key: e.value for e in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise broken("its record has a key twice", "each key once", name)
    location = entries.get("location", "")
    if location in ("", ".", "..") or any(c in location for c in "/\\\0:"):
        raise broken(f"it lies in {location!r:.80}", "a plain file name of this folder", name)
    start, nbytes = (_count(entries, key, name) for key in ("offset", "length"))
    expected = dtype.nbytes * int(np.prod(shape, dtype=object))
    with Reader(folder / location) as reader:
        if nbytes != expected or start + nbytes > reader.size:
            found = f"bytes {start} to {start + nbytes} of a file of {reader.size}"
            raise broken(found, f"{expected} bytes inside the file", name)
    return Record(name, shape, dtype, folder / location, start, nbytes)


def _count(entries: dict[str, str], key: str, name: str) -> int:
    text = entries.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise broken(f"its {key} is {text!r:.40}", "a number of bytes", name)
    return int(text)


@dataclass(frozen=True)
class Record:
    """One external initialiser: `shape` of `dtype` at `[start, start + nbytes)` of `path`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    path: Path
    start: int
    nbytes: int

    def rows(self, r0: int, r1: int, transposed: bool) -> F32:
        """Float32 rows `[r0:r1]` in the source's orientation; a transposed tensor is read in
        strides."""
        out = self.shape[1] if transposed else self.shape[0]
        if not 0 <= r0 <= r1 <= out:
            raise IndexError(f"rows {r0}:{r1} of {out}")
        with Reader(self.path) as reader:
            if not transposed:
                row = self.nbytes // max(out, 1)
                raw = reader.read(self.start + r0 * row, (r1 - r0) * row)
                return np.frombuffer(raw, "<f4").reshape(r1 - r0, *self.shape[1:]).copy()
            block = np.empty((r1 - r0, self.shape[0]), np.float32)
            for column in range(self.shape[0]):
                at = self.start + (column * out + r0) * self.dtype.nbytes
                raw = reader.read(at, (r1 - r0) * self.dtype.nbytes)
                block[:, column] = np.frombuffer(raw, "<f4")
            return block

    def array(self) -> NDArray[Any]:
        """A window of the mapped file, in the type and shape of the record."""
        with Reader(self.path) as reader:
            if self.start + self.nbytes > reader.size:  # cut since it was checked
                raise broken(f"{self.path.name} ends at byte {reader.size}", "more bytes")
            mapped = mmap.mmap(reader.file, 0, access=mmap.ACCESS_READ)
        count = self.nbytes // self.dtype.nbytes
        return np.frombuffer(mapped, self.dtype.numpy, count, self.start).reshape(self.shape)

    def sha256(self) -> str:
        """Of the stored bytes."""
        digest = hashlib.sha256()
        with Reader(self.path) as reader:
            for at in range(0, self.nbytes, _STRIDE):
                digest.update(reader.read(self.start + at, min(_STRIDE, self.nbytes - at)))
        return digest.hexdigest()

    def stored(self, transposed: bool) -> StoredTensor:
        """As a weight of the model."""
        shape = self.shape[::-1] if transposed else self.shape
        return StoredTensor(
            self.name,
            shape,
            self.dtype.value,
            self.path.name,
            self.nbytes,
            lambda r0, r1: self.rows(r0, r1, transposed),
            self.sha256,
        )


class Reader:
    """A plain file, opened without following a link, read by absolute offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise broken(
                f"{path.name} cannot be opened: {error.strerror}", "a plain file"
            ) from error
        info = os.fstat(self.file)
        self.size = info.st_size
        if not stat.S_ISREG(info.st_mode):
            os.close(self.file)
            raise broken(f"{path.name} is not a plain file", "a plain file")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def read(self, at: int, count: int) -> bytes:
        """Exactly `count` bytes from `at`."""
        parts: list[bytes] = []
        while count:
            part = os.pread(self.file, count, at)
            if not part:
                raise broken(f"{self._path.name} ends at byte {at}", f"{count} more bytes")
            parts.append(part)
            at, count = at + len(part), count - len(part)
        return b"".join(parts)
