"""A graph of one PackedLinear node, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from backends.decoder_graph.options import DOMAIN, OPERATORS, PACKED_LINEAR
from backends.packed.kernels.compile import LIBRARY
from tests.packed.make import Source

TYPES = {
    "float32": TensorProto.FLOAT,
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
INPUTS = ("values", "mask", "offsets", "starts")


def graph(
    made: Source,
    *,
    attributes: Mapping[str, Any] | None = None,
    parts: Mapping[str, np.ndarray] | None = None,
    fed: str = "",
) -> bytes:
    """`attributes` and `parts` replace those of `made`; the part `fed` is an input of the graph."""
    arrays = made.pack() | dict(parts or {})
    names = [part for part in INPUTS if part in arrays]
    found: dict[str, Any] = made.spec.to_json() | dict(attributes or {})
    kept = {key: value for key, value in found.items() if value is not None}
    node = helper.make_node(PACKED_LINEAR, ["x", *names], ["y"], domain=DOMAIN, **kept)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    tensors: list[onnx.TensorProto] = []
    for name in names:
        array = arrays[name]
        kind = TYPES[array.dtype.name]
        if name == fed:
            inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        else:
            tensors.append(helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid(DOMAIN, OPERATORS)]
    drawn = helper.make_graph([node], "one", inputs, outputs, tensors)
    model = helper.make_model(drawn, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def session(model: bytes, threads: int = 1) -> Any:
    """In onnxruntime, as any program would run it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def multiply(model: bytes, x: np.ndarray, threads: int = 1) -> np.ndarray:
    """y of one run."""
    return session(model, threads).run(None, {"x": x})[0]
