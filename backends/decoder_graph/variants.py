"""Other views of a written graph that share its data file: fixed sizes, extra outputs."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from backends.decoder_graph.options import BATCH, HIDDEN, PAST, SEQUENCE, TOKENS
from exporter.errors import UsageError


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph without its weights."""
    return onnx.load_model(path, load_external_data=False)


def static_variant(
    graph: Path, out: Path, tokens: int, sequence: int, cache_batch0: bool = False
) -> Path:
    """Copy `graph` to `out` with every dimension fixed; gives `out`.

    Args:
        graph: a model.onnx of ours with symbolic dimensions.
        out: where the copy goes. It names the data file as `graph` does, by a plain file name,
            so that file must lie (or be linked) beside it.
        tokens: new tokens in one run.
        sequence: past and new tokens together; above `tokens`.
        cache_batch0: declare cache inputs and outputs with batch 0, for engines that keep the
            cache inside.

    Raises:
        UsageError: `target-option` where the cache would be empty, which DeepSparse refuses.
    """
    if not 0 < tokens < sequence:
        raise UsageError(
            "target-option",
            f"{tokens} tokens in a sequence of {sequence}",
            expected="at least one token, and fewer than the sequence",
        )
    sizes = {BATCH: 1, TOKENS: tokens, SEQUENCE: sequence, PAST: sequence - tokens}
    model = read_graph(graph)
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        for dim in dims:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]  # clears dim_param: they are a oneof
        if cache_batch0 and value.name.startswith(("past_key_values.", "present.")):
            dims[0].dim_value = 0
    out.write_bytes(model.SerializeToString(deterministic=True))
    return out


def probe_variant(graph: Path) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The graph with the residual stream as extra outputs, and output name by probe key.

    Keys are those of `Target.probe`: "embedding", "layer.{i}", "norm". The values are float32
    `[batch, tokens, hidden]`.
    """
    model = read_graph(graph)
    names = [out for node in model.graph.node for out in node.output]
    shown = {name.removeprefix(HIDDEN): name for name in names if _is_state(name)}
    for name in shown.values():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model, shown


def _is_state(name: str) -> bool:
    return name.startswith(HIDDEN) and "/" not in name
