"""The whole graph: inputs, embedding, rotary rows, mask, layers, head, outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import onnx
from onnx import TensorProto, helper

from backends.decoder_graph.blocks import Shared, decoder_layer, head, rms_norm
from backends.decoder_graph.layout import Slot
from backends.decoder_graph.options import (
    BATCH,
    DOMAIN,
    HIDDEN,
    IR_VERSION,
    OPERATORS,
    OPSET,
    PAST,
    SEQUENCE,
    TOKENS,
    GraphOptions,
)
from backends.decoder_graph.pen import Pen
from backends.packed.spec import PackedLinear
from exporter.arch.rope import half_tables
from exporter.arch.spec import DecoderSpec

FLOAT_MAX = 3.4028235e38  # of float32: what hides a position, finite so that nothing is NaN


def build_graph(
    spec: DecoderSpec,
    slots: Sequence[Slot],
    options: GraphOptions,
    *,
    tied: bool,
    packed: Mapping[str, PackedLinear],
) -> onnx.ModelProto:
    """The model without weights: initialisers refer to `options.data_file` by `slots`.

    Args:
        spec: the model.
        slots: every initialiser of the data file.
        options: of the graph.
        tied: whether the head is the embedding.
        packed: module -> its entry, for the linears whose parts `slots` holds.

    Raises:
        UsageError: `target-option` for a sequence length the model does not have.
    """
    pen = Pen(options.data_file)
    weights = frozenset(pen.weight(slot) for slot in slots)
    shared = Shared(pen, spec, options, weights, packed)
    x = pen.draw("Gather", [spec.embedding, "input_ids"], f"{HIDDEN}embedding", axis=0)
    cos, sin = _rotary_rows(shared)
    shared = replace(shared, cos=cos, sin=sin, mask=_mask(shared))
    for layer in range(spec.layers):
        x = decoder_layer(shared, x, layer)
    head(shared, rms_norm(shared, x, spec.final_norm, f"{HIDDEN}norm"), tied)
    inputs, outputs = _interface(spec, options)
    graph = helper.make_graph(pen.nodes, "decoder", inputs, outputs, pen.initialisers)
    return _model(graph, spec, options, packed=len(packed))


def _model(
    graph: onnx.GraphProto, spec: DecoderSpec, options: GraphOptions, *, packed: int
) -> onnx.ModelProto:
    try:
        ours = version("sparse-export")
    except PackageNotFoundError:
        ours = "0"
    opsets = [("", OPSET)] + [(DOMAIN, OPERATORS)] * bool(packed)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*each) for each in opsets],
        ir_version=IR_VERSION,
        producer_name="sparse-export",
        producer_version=ours,
    )
    facts = {"io": options.io, "sequence_length": str(options.positions(spec))}
    facts |= {"packed_linears": str(packed)} if packed else {}
    helper.set_model_props(model, {f"sparse_export.{k}": v for k, v in facts.items()})
    return model


def _rotary_rows(shared: Shared) -> tuple[str, str]:
    """Rows of the tables by position, `[batch, 1, tokens, D/2]`.

    Tables, not Cos and Sin nodes: both engines then use the very values of the reference, and
    DeepSparse runs Gather itself. They hold half a head, since both halves are equal.
    """
    pen, spec, options = shared.pen, shared.spec, shared.options
    positions = "positions" if options.io == "deepsparse" else "position_ids"
    rows: list[str] = []
    tables = half_tables(spec, options.positions(spec))
    for name, values in zip(("rope.cos", "rope.sin"), tables, strict=True):
        row = pen.draw("Gather", [pen.table(name, values), positions], f"{name}/rows", axis=0)
        rows.append(pen.draw("Unsqueeze", [row, pen.integers(1)], f"{name}/by_head"))
    return rows[0], rows[1]


def _mask(shared: Shared) -> str:
    """0 where a query may look, -FLOAT_MAX elsewhere."""
    pen = shared.pen
    seen = "causal_mask" if shared.options.io == "deepsparse" else _seen(shared)
    wide = pen.draw("Cast", [seen], "mask/wide", to=TensorProto.FLOAT)
    hidden = pen.draw("Sub", [wide, pen.number(1.0)], "mask/hidden")
    return pen.draw("Mul", [hidden, pen.number(FLOAT_MAX)], "mask/additive")


def _seen(shared: Shared) -> str:
    """Whether query t may look at cache entry s: s is a token, and no later one.

    The position of s is the count of tokens up to it, which is how position_ids are made, so
    the cache may have padding anywhere, as in a left-padded batch or a fixed window.
    """
    pen, spec = shared.pen, shared.spec
    count = pen.draw("CumSum", ["attention_mask", pen.constant(1, "int64")], "mask/count")
    place = pen.draw("Sub", [count, pen.constant(1, "int64")], "mask/place")
    grouped = spec.heads > spec.kv_heads
    columns = [1, 2, 3] if grouped else [1, 2]  # [batch, 1, (1,) 1, sequence]
    rows = [1, 2, 4] if grouped else [1, 3]  # [batch, 1, (1,) tokens, 1]
    key = pen.draw("Unsqueeze", [place, pen.integers(*columns)], "mask/key")
    real = pen.draw("Unsqueeze", ["attention_mask", pen.integers(*columns)], "mask/real")
    query = pen.draw("Unsqueeze", ["position_ids", pen.integers(*rows)], "mask/query")
    before = pen.draw("LessOrEqual", [key, query], "mask/before")
    before = pen.draw("Cast", [before], "mask/before_int", to=TensorProto.INT64)
    return pen.draw("Mul", [before, real], "mask/seen")


def _interface(
    spec: DecoderSpec, options: GraphOptions
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    batch: int | str = 1 if options.io == "deepsparse" else BATCH
    heads = options.cache_heads(spec)

    def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        shape = (batch, heads, length, spec.head_dim)
        names = [f"{prefix}.{i}.{kv}" for i in range(spec.layers) for kv in ("key", "value")]
        return [value(name, TensorProto.FLOAT, *shape) for name in names]

    whole, index = TensorProto.INT64, "positions" if options.io == "deepsparse" else "position_ids"
    inputs = [
        value("input_ids", whole, batch, TOKENS),
        value("attention_mask", whole, batch, SEQUENCE),
        value(index, whole, batch, TOKENS),
    ]
    if options.io == "deepsparse":
        inputs.append(value("causal_mask", whole, batch, 1, TOKENS, SEQUENCE))
    logits = value("logits", TensorProto.FLOAT, batch, TOKENS, spec.vocab)
    inputs += cache("past_key_values", PAST)
    return inputs, [logits, *cache("present", SEQUENCE)]
