"""onnx is an extra: asked for by name where it is missing, before anything imports it."""

from __future__ import annotations

from importlib.util import find_spec

from exporter.errors import EngineUnfit


def need_onnx() -> None:
    """Refuse to go on without onnx, which builds and reads the graph.

    Raises:
        EngineUnfit: `engine-missing`.
    """
    if find_spec("onnx") is None:
        text = "onnx is not installed: pip install 'sparse-export[onnx]'"
        raise EngineUnfit("engine-missing", text)
