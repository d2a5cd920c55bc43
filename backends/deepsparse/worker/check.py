"""check.py: run DeepSparse on a known value; prints its facts as JSON, or ends with status 1.

A value is needed: with numpy 2 the engine loads, runs and returns arrays of the right shape
and dtype whose strides are 0, so that every element repeats the first.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from importlib import import_module
from typing import Any


def main() -> dict[str, object]:
    """Facts of the environment, after a MatMul whose result was right."""
    np: Any = import_module("numpy")
    if int(np.__version__.split(".")[0]) >= 2:
        raise SystemExit(f"numpy {np.__version__} makes DeepSparse compute wrongly; < 2 is needed")
    deepsparse: Any = import_module("deepsparse")
    check_values(np, deepsparse)
    arch = deepsparse.cpu.cpu_architecture()
    return {
        "version": deepsparse.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "isa": arch.isa,
        "vnni": bool(arch.vnni),
    }


def check_values(np: Any, deepsparse: Any) -> None:
    """Compare a half-zero MatMul with numpy's."""
    onnx: Any = import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 48)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.5] = 0
    x = rng.standard_normal((3, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "check",
        [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [helper.make_tensor_value_info("y", kind, [3, 48])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "check.onnx")
        onnx.save(model, path)
        engine = deepsparse.Engine(path, batch_size=3, num_cores=1)
        got = engine.run([x])[0]
    if not np.allclose(got, x @ weight, atol=1e-4):
        raise SystemExit(f"DeepSparse computed a MatMul wrongly (strides {got.strides})")


if __name__ == "__main__":
    print(json.dumps(main(), sort_keys=True))
    sys.exit(0)
