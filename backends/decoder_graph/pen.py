"""A pen that draws nodes: names outputs, shares constants, keeps everything in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from backends.decoder_graph.layout import Slot
from exporter.store.dtypes import DType

ONNX_TYPES = {
    DType.F32: TensorProto.FLOAT,
    DType.BF16: TensorProto.BFLOAT16,
    DType.U8: TensorProto.UINT8,
    DType.I32: TensorProto.INT32,
    DType.I64: TensorProto.INT64,
}
"""Of initialisers in the data file."""


class Pen:
    """Collects nodes and initialisers of one graph; a value is known by its name."""

    def __init__(self, data_file: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self._data_file = data_file
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}

    def draw(self, op: str, inputs: list[str], name: str, outputs: int = 1, **attrs: Any) -> str:
        """Add a node; gives the name of its first output, which is `name` itself."""
        names = [name, *(f"{name}.{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, **attrs))
        return name

    def constant(self, values: Any, dtype: str) -> str:
        """A small constant inside the graph; equal constants are one."""
        array: NDArray[np.generic] = np.asarray(values, dtype=dtype)
        key = (dtype, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = self.table(f"constant.{len(self._constants)}", array)
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """An int64 vector: a shape, axes."""
        return self.constant(list(values), "int64")

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(value, "float32")

    def table(self, name: str, array: NDArray[np.generic]) -> str:
        """An array inside the graph file."""
        self.initialisers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, slot: Slot) -> str:
        """An initialiser in the data file."""
        tensor = TensorProto(
            name=slot.name,
            data_type=ONNX_TYPES[slot.dtype],
            dims=slot.shape,
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": self._data_file, "offset": slot.offset, "length": slot.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initialisers.append(tensor)
        return slot.name
