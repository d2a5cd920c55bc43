"""Sparse linears as nodes of our own operator, which `src/onnx_op.cpp` of the kernels computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.decoder_graph.options import DOMAIN, PACKED_LINEAR, GraphOptions
from backends.packed.spec import PackedLinear
from backends.vllm.choose import Chosen, Wish, choose
from exporter.model import FusedModel

if TYPE_CHECKING:  # which imports onnx, and a target is asked about a model without it
    from backends.decoder_graph.pen import Pen

PARTS = ("values", "mask", "offsets", "starts")
"""The node's inputs after x, in the layout of docs/formats/packed.md; N:M has the first two."""


def packed_linears(model: FusedModel, options: GraphOptions) -> dict[str, Chosen]:
    """Weight name -> how it is stored, of every linear that becomes such a node.

    Those that the check calls dense, or that take no fewer bytes packed, stay a MatMul. So does one
    of zeros alone: its values would be an initialiser without bytes, for which no file has a place.
    """
    if options.packed is None:
        return {}
    chosen = choose(model, Wish(ragged=True, values=options.packed))
    return {name: c for name, c in chosen.items() if c.spec.kind != "dense" and c.spec.nnz}


def draw_packed(pen: Pen, spec: PackedLinear, x: str, module: str) -> str:
    """`x W^T` of a linear whose parts are initialisers; gives the name of the result."""
    there = spec.tensors()
    inputs = [x, *(f"{module}.{part}" for part in PARTS if part in there)]
    return pen.draw(PACKED_LINEAR, inputs, f"{module}/packed", domain=DOMAIN, **spec.to_json())
