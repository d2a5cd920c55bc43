"""DeepSparse's side of the kernel benchmark; runs in its own environment, with nothing of ours.

One JSON object a line in and out: {"build": {...}} compiles a chain of sparse MatMul and Relu,
alternately [k, n] and [n, k]; {"time": {"name", "calls"}} answers the seconds of one linear. A
chain, so that the cost of a call of the engine is shared by its linears, in its favour.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

# As DeepSparse's own pipeline sets it, before the engine's library is loaded.
os.environ.setdefault("WAND_OPT_FLAGS", "default,~pyramids")

import numpy as np


class Engines:
    """Compiled chains by name."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._onnx: Any = import_module("onnx")
        self._deepsparse: Any = import_module("deepsparse")
        self._found: dict[str, tuple[Any, list[Any], int]] = {}

    def build(self, given: dict[str, Any]) -> dict[str, Any]:
        """Compile one chain; `forget` drops all others first."""
        if given["forget"]:
            self._found.clear()
        m, width = given["m"], given["k"]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "chain.onnx")
            self._onnx.save(
                self._chain(given), path, save_as_external_data=True, location="chain.data"
            )
            engine = self._deepsparse.Engine(path, batch_size=m, num_cores=self._threads)
        x = [np.random.default_rng(1).standard_normal((m, width)).astype(np.float32)]
        engine.run(x)
        self._found[given["name"]] = engine, x, given["layers"]
        arch = self._deepsparse.cpu.cpu_architecture()
        share = float(engine.fraction_of_supported_ops)
        return {"share": share, "isa": arch.isa, "version": self._deepsparse.__version__}

    def time(self, given: dict[str, Any]) -> dict[str, Any]:
        """Seconds of one linear: a call over its number of linears."""
        engine, x, layers = self._found[given["name"]]
        begin = time.perf_counter()
        for _ in range(given["calls"]):
            engine.run(x, val_inp=False)
        return {"seconds": (time.perf_counter() - begin) / given["calls"] / layers}

    def _chain(self, given: dict[str, Any]) -> Any:
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        rng = np.random.default_rng(0)
        shape, nodes, weights, at = (given["k"], given["n"]), [], [], "x"
        last = given["k"]
        drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.03)
        drawn[rng.random(shape, dtype=np.float32) < given["zeros"]] = 0
        for i in range(given["layers"]):
            # All differ by where a row begins: to draw each would take most of the benchmark.
            weight = np.roll(drawn, 97 * i, 1)
            weight = np.ascontiguousarray(weight.T) if i % 2 else weight
            weights.append(self._onnx.numpy_helper.from_array(weight, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [at, f"w{i}"], [f"a{i}"]))
            nodes.append(helper.make_node("Relu", [f"a{i}"], [f"y{i}"]))
            at, last, shape = f"y{i}", shape[1], shape[::-1]
        ends = [
            [helper.make_tensor_value_info(name, kind, [given["m"], width])]
            for name, width in (("x", given["k"]), (at, last))
        ]
        graph = helper.make_graph(nodes, "chain", *ends, weights)
        opsets = [helper.make_opsetid("", 14)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def main() -> None:
    """Serve stdin until it ends; whatever the engine prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engines = Engines(int(sys.argv[1]))
    for line in sys.stdin:
        ((what, given),) = json.loads(line).items()
        answer = engines.build(given) if what == "build" else engines.time(given)
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
