"""Re-read the weights of a written graph, by the graph alone.

Nothing of the writer is used: orientation follows from the node that reads an initialiser,
places from the file's own records, bytes from `pread`. Folders may come from strangers
(`sparse-export verify`), so records are checked before anything is read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from exporter.contract import StoredTensor
from exporter.errors import VerificationFailed
from exporter.limits import LIMITS
from exporter.store.dtypes import F32

_ITEM = 4
_STRIDE = 1 << 20


def _broken(found: str, expected: str, tensor: str | None = None) -> VerificationFailed:
    return VerificationFailed(
        "verify-structure", found, expected=expected, file="model.onnx", tensor=tensor
    )


@dataclass(frozen=True)
class _Record:
    """One external initialiser: float32 `shape` at `[start, start + nbytes)` of `path`."""

    name: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int
    transposed: bool

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]` in the source's orientation; a transposed tensor is read in strides."""
        out = self.shape[1] if self.transposed else self.shape[0]
        if not 0 <= r0 <= r1 <= out:
            raise IndexError(f"rows {r0}:{r1} of {out}")
        with _Reader(self.path) as reader:
            if not self.transposed:
                row = self.nbytes // max(out, 1)
                raw = reader.read(self.start + r0 * row, (r1 - r0) * row)
                return np.frombuffer(raw, "<f4").reshape(r1 - r0, *self.shape[1:]).copy()
            block = np.empty((r1 - r0, self.shape[0]), np.float32)
            for column in range(self.shape[0]):
                at = self.start + (column * out + r0) * _ITEM
                block[:, column] = np.frombuffer(reader.read(at, (r1 - r0) * _ITEM), "<f4")
            return block

    def sha256(self) -> str:
        """Of the stored bytes."""
        digest = hashlib.sha256()
        with _Reader(self.path) as reader:
            for at in range(0, self.nbytes, _STRIDE):
                digest.update(reader.read(self.start + at, min(_STRIDE, self.nbytes - at)))
        return digest.hexdigest()

    def stored(self) -> StoredTensor:
        shape = self.shape[::-1] if self.transposed else self.shape
        return StoredTensor(
            self.name, shape, "F32", self.path.name, self.nbytes, self.rows, self.sha256
        )


class _Reader:
    """A plain file, opened without following a link, read by absolute offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _broken(
                f"{path.name} cannot be opened: {error.strerror}", "a plain file"
            ) from error
        info = os.fstat(self._file)
        self.size = info.st_size
        if not stat.S_ISREG(info.st_mode):
            os.close(self._file)
            raise _broken(f"{path.name} is not a plain file", "a plain file")

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, at: int, count: int) -> bytes:
        """Exactly `count` bytes from `at`."""
        parts: list[bytes] = []
        while count:
            part = os.pread(self._file, count, at)
            if not part:
                raise _broken(f"{self._path.name} ends at byte {at}", f"{count} more bytes")
            parts.append(part)
            at, count = at + len(part), count - len(part)
        return b"".join(parts)


def read_back(folder: Path, graph_file: str = "model.onnx") -> Iterator[StoredTensor]:
    """Every external initialiser of the graph, in graph order; shapes as in the source model.

    Raises:
        VerificationFailed: `verify-structure` for a graph that does not parse, a record outside
            the folder or its file, overlaps, a type other than float32, an initialiser that no
            node reads or that two nodes read in different orientations.
    """
    with _Reader(folder / graph_file) as reader:
        raw = reader.read(0, reader.size)
    try:
        model = onnx.ModelProto.FromString(raw)
    except DecodeError as error:
        raise _broken("it does not parse", "an ONNX model") from error
    del raw
    records = [_record(folder, t, model.graph) for t in _external(model.graph)]
    _refuse_overlap(records)
    for record in records:
        yield record.stored()


def _external(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    if graph.sparse_initializer:
        raise _broken("it has sparse initialisers", "dense ones")
    names = [t.name for t in graph.initializer]
    if len(set(names)) != len(names) or len(names) > LIMITS.tensors:
        raise _broken("an initialiser's name occurs twice", "each name once")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.t.external_data:
                raise _broken(f"node {node.name} holds a graph or weights", "plain nodes")
    return [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def _record(folder: Path, tensor: onnx.TensorProto, graph: onnx.GraphProto) -> _Record:
    name, shape = tensor.name, tuple(tensor.dims)
    if tensor.data_type != onnx.TensorProto.FLOAT:
        raise _broken(f"element type {tensor.data_type}", "float32", name)
    if not 1 <= len(shape) <= LIMITS.rank or any(d < 1 or d > LIMITS.dim for d in shape):
        raise _broken(f"shape {shape}", "positive dimensions", name)
    entries = {e.key: e.value for e in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise _broken("its record has a key twice", "each key once", name)
    location = entries.get("location", "")
    if location in ("", ".", "..") or any(c in location for c in "/\\\0:"):
        raise _broken(f"it lies in {location!r:.80}", "a plain file name of this folder", name)
    start, nbytes = (_count(entries, key, name) for key in ("offset", "length"))
    expected = _ITEM * int(np.prod(shape, dtype=object))
    with _Reader(folder / location) as reader:
        if nbytes != expected or start + nbytes > reader.size:
            found = f"bytes {start} to {start + nbytes} of a file of {reader.size}"
            raise _broken(found, f"{expected} bytes inside the file", name)
    return _Record(name, shape, folder / location, start, nbytes, _orientation(graph, tensor))


def _count(entries: dict[str, str], key: str, name: str) -> int:
    text = entries.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise _broken(f"its {key} is {text!r:.40}", "a number of bytes", name)
    return int(text)


def _orientation(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> bool:
    """Whether the tensor is stored `[in, out]`, told from how nodes read it."""
    uses = {
        _reads_transposed(node, at, tensor)
        for node in graph.node
        for at, name in enumerate(node.input)
        if name == tensor.name
    }
    if len(uses) != 1:
        found = "no node reads it" if not uses else "nodes read it in two orientations"
        raise _broken(found, "one orientation", tensor.name)
    return uses.pop()


def _reads_transposed(node: onnx.NodeProto, at: int, tensor: onnx.TensorProto) -> bool:
    if len(tensor.dims) == 1 and node.op_type in ("Mul", "Add"):
        return False
    if node.op_type == "Gather" and at == 0:
        return False
    if node.op_type == "MatMul" and at == 1 and len(tensor.dims) == 2:
        return True
    if node.op_type == "Gemm" and at == 1 and len(tensor.dims) == 2:
        return not any(a.name == "transB" and a.i == 1 for a in node.attribute)
    raise _broken(f"{node.op_type} reads it as input {at}", "a known use", tensor.name)


def _refuse_overlap(records: Iterable[_Record]) -> None:
    ends: dict[Path, tuple[int, str]] = {}
    for record in sorted(records, key=lambda r: (r.path, r.start)):
        end, other = ends.get(record.path, (0, ""))
        if record.start < end:
            raise _broken(f"its bytes overlap those of {other}", "bytes of its own", record.name)
        ends[record.path] = (record.start + record.nbytes, record.name)


def stored_twice(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of matrices whose content is stored already under another name.

    Vectors do not count (norm gains of a fresh model are equal), nor do matrices of zeros alone.
    """
    seen: set[tuple[str, int]] = set()
    twice = 0
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        key = (tensor.sha256(), tensor.nbytes)
        if key in seen and key[0] != _zeros_sha256(tensor.nbytes):
            twice += tensor.nbytes
        seen.add(key)
    return twice


def _zeros_sha256(nbytes: int) -> str:
    digest, block = hashlib.sha256(), bytes(_STRIDE)
    for at in range(0, nbytes, _STRIDE):
        digest.update(block[: min(_STRIDE, nbytes - at)])
    return digest.hexdigest()
