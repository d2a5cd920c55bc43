"""Re-read the weights of a written graph, by the graph alone.

Nothing of the writer is used: orientation follows from the node that reads an initialiser,
places from the file's own records, bytes from `pread`. Folders may come from strangers
(`sparse-export verify`), so records are checked before anything is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from backends.decoder_graph.external import Reader, Record, broken, record
from backends.decoder_graph.read_packed import is_packed, packed_tensor
from exporter.contract import StoredTensor
from exporter.limits import LIMITS
from exporter.store.dtypes import DType

_STRIDE = 1 << 20


def read_back(folder: Path, graph_file: str = "model.onnx") -> Iterator[StoredTensor]:
    """Every external initialiser of the graph, in graph order, shapes as in the source model; then
    every linear whose parts are initialisers.

    Raises:
        VerificationFailed: `verify-structure` for a graph that does not parse, a record outside
            the folder or its file, overlaps, a type other than float32, an initialiser that no
            node reads or that two nodes read in different orientations, and parts that the packed
            format's own rules refuse.
    """
    with Reader(folder / graph_file) as reader:
        raw = reader.read(0, reader.size)
    try:
        model = onnx.ModelProto.FromString(raw)
    except DecodeError as error:
        raise broken("it does not parse", "an ONNX model") from error
    del raw
    records = {t.name: record(folder, t) for t in _external(model.graph)}
    _refuse_overlap(records.values())
    packed = [node for node in model.graph.node if is_packed(node)]
    parts = {name for node in packed for name in node.input[1:]}
    uses = _uses(model.graph)
    for name, each in records.items():
        transposed = _orientation(uses.get(name, []), each)
        if name not in parts:
            yield _plain(each, transposed)
    for node in packed:
        yield packed_tensor(node, records)


def _external(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    if graph.sparse_initializer:
        raise broken("it has sparse initialisers", "dense ones")
    names = [t.name for t in graph.initializer]
    if len(set(names)) != len(names) or len(names) > LIMITS.tensors:
        raise broken("an initialiser's name occurs twice", "each name once")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.t.external_data:
                raise broken(f"node {node.name} holds a graph or weights", "plain nodes")
    return [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def _plain(tensor: Record, transposed: bool) -> StoredTensor:
    if tensor.dtype is not DType.F32:
        raise broken(f"element type {tensor.dtype.value}", "float32", tensor.name)
    return tensor.stored(transposed)


def _uses(graph: onnx.GraphProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """Value -> the nodes that read it, and as which input."""
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for at, name in enumerate(node.input):
            found.setdefault(name, []).append((node, at))
    return found


def _orientation(readers: Sequence[tuple[onnx.NodeProto, int]], tensor: Record) -> bool:
    """Whether the tensor is stored `[in, out]`, told from how nodes read it."""
    uses = {_reads_transposed(node, at, tensor) for node, at in readers}
    if len(uses) != 1:
        found = "no node reads it" if not uses else "nodes read it in two orientations"
        raise broken(found, "one orientation", tensor.name)
    return uses.pop()


def _reads_transposed(node: onnx.NodeProto, at: int, tensor: Record) -> bool:
    rank = len(tensor.shape)
    if is_packed(node) and at > 0:
        return False
    if rank == 1 and node.op_type in ("Mul", "Add"):
        return False
    if node.op_type == "Gather" and at == 0:
        return False
    if node.op_type == "MatMul" and at == 1 and rank == 2:
        return True
    if node.op_type == "Gemm" and at == 1 and rank == 2:
        return not any(a.name == "transB" and a.i == 1 for a in node.attribute)
    raise broken(f"{node.op_type} reads it as input {at}", "a known use", tensor.name)


def _refuse_overlap(records: Iterable[Record]) -> None:
    ends: dict[Path, tuple[int, str]] = {}
    for each in sorted(records, key=lambda r: (r.path, r.start)):
        end, other = ends.get(each.path, (0, ""))
        if each.start < end:
            raise broken(f"its bytes overlap those of {other}", "bytes of its own", each.name)
        ends[each.path] = (each.start + each.nbytes, each.name)


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
