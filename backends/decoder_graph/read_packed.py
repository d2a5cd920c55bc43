"""Re-read the linears that stand in a graph as parts, by the rules of the packed format.

Shares no code with the writer: entries from the node's attributes, values by `packed.unpack`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from backends.decoder_graph.external import Record, broken
from backends.decoder_graph.options import DOMAIN, PACKED_LINEAR
from backends.packed.check import check
from backends.packed.spec import PackedLinear, Parts
from backends.packed.unpack import dense, kept
from exporter.contract import Packing, StoredTensor
from exporter.errors import InputRefused, VerificationFailed
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32


def is_packed(node: onnx.NodeProto) -> bool:
    """Whether a node is a linear in parts."""
    return (node.domain, node.op_type) == (DOMAIN, PACKED_LINEAR)


def packed_tensor(node: onnx.NodeProto, records: Mapping[str, Record]) -> StoredTensor:
    """The weight of a node.

    Args:
        node: reads x, then the parts.
        records: external initialisers by name.

    Raises:
        VerificationFailed: `verify-structure`: attributes that make no entry of the format, inputs
            of other names, or parts that contradict them or one another.
    """
    module = node.input[1].removesuffix(".values") if len(node.input) > 1 else ""
    try:
        spec = PackedLinear.from_json(module, _attributes(node), "model.onnx")
        inputs = [f"{module}.{part}" for part in _INPUTS if part in spec.tensors(0)]
        if spec.kind == "dense" or spec.values.quantised or list(node.input[1:]) != inputs:
            found = f"node {node.name:.200}: kind {spec.kind}, values {spec.values.value}"
            raise broken(found, f"a sparse linear of floats that reads {inputs}", module)
        for name in inputs:
            if name not in records or records[name].start % records[name].dtype.nbytes:
                raise broken("no aligned initialiser of the data file", "one", name)
        linear = _Linear(module, spec, {n.rpartition(".")[2]: records[n] for n in inputs})
        check(spec, linear.parts(), module, "model.onnx")
    except InputRefused as error:
        raise VerificationFailed(
            "verify-structure",
            error.found,
            expected=error.expected or "an entry of the packed format",
            file="model.onnx",
            tensor=error.tensor,
        ) from error
    return linear.stored()


_INPUTS = ("values", "mask", "offsets", "starts")  # in the order in which the operator reads them


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """As the JSON of an entry has them; a name that occurs twice takes its last value."""
    raw = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return {k: v.decode("ascii", "replace") if isinstance(v, bytes) else v for k, v in raw.items()}


@dataclass(frozen=True)
class _Linear:
    module: str
    spec: PackedLinear
    records: Mapping[str, Record]  # by part

    def parts(self) -> Parts:
        """Windows of the mapped file: nothing is read until it is looked at."""
        return {part: each.array() for part, each in self.records.items()}

    def rows(self, r0: int, r1: int) -> F32:
        return dense(self.spec, self.parts(), r0, r1)

    def kept(self, r0: int, r1: int) -> Bools:
        """The bits of the mask, fillers of N:M included, which `unpack.kept` leaves out."""
        return kept(replace(self.spec, kind="ragged", n=0, m=0), self.parts(), r0, r1)

    def sha256(self) -> str:
        """Of each part's name and digest."""
        digest = hashlib.sha256()
        for part, each in self.records.items():
            digest.update(f"{part} {each.sha256()}\n".encode())
        return digest.hexdigest()

    def stored(self) -> StoredTensor:
        spec = self.spec
        return StoredTensor(
            f"{self.module}.weight",
            spec.shape,
            spec.values.dtype.value,
            self.records["values"].path.name,
            sum(each.nbytes for each in self.records.values()),
            self.rows,
            self.sha256,
            Packing(
                kind=f"{spec.n}:{spec.m}" if spec.kind == "nm" else spec.kind,
                values=spec.values.value,
                kept=self.kept,
                exact=spec.kind == "ragged",
            ),
        )
