"""contract.py STUBS: what the plugin takes for granted of vLLM, asked of vLLM; prints JSON."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def missing_from_vllm(stubs: Path) -> list[str]:
    """Names and parameters of the stubs that this vLLM does not have."""
    absent: list[str] = []
    for file in sorted(stubs.rglob("*.pyi")):
        relative = file.relative_to(stubs.parent).with_suffix("")
        name = ".".join(relative.parts).removesuffix(".__init__")
        module = import_module(name)
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                absent += _signature(f"{name}.{node.name}", getattr(module, node.name, None), node)
            elif isinstance(node, ast.ClassDef):
                absent += _members(f"{name}.{node.name}", getattr(module, node.name, None), node)
    return absent


def _members(name: str, found: Any, node: ast.ClassDef) -> list[str]:
    if found is None:
        # The one class whose place does not matter: the layer makes the object itself.
        return [] if node.name == "ExpertMapManager" else [name]
    absent = [
        f"{name}: base {base.id}"
        for base in node.bases
        if isinstance(base, ast.Name) and base.id not in {c.__name__ for c in found.__mro__}
    ]
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            absent += _signature(f"{name}.{item.name}", getattr(found, item.name, None), item)
    return absent


def _signature(name: str, found: Any, node: ast.FunctionDef) -> list[str]:
    if found is None:
        return [name]
    if isinstance(found, property):
        return []
    has = inspect.signature(found).parameters
    if any(p.kind is p.VAR_KEYWORD for p in has.values()):
        return []
    wanted = [a.arg for a in node.args.args if a.arg not in ("self", "cls")]
    return [f"{name}({argument})" for argument in wanted if argument not in has]


def overrides(configs: list[Any]) -> dict[str, list[Any]]:
    """What each registered method, and ours, makes of other people's configs."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS as methods
    from vllm.model_executor.layers.quantization import get_quantization_config

    ours = get_quantization_config("sparse-export")
    mine = [ours.override_quantization_method(c, None, hf_config=None) for c in configs]
    first = methods.index("sparse-export") >= 0
    return {"ours": mine, "registered": [first, len(set(methods)) == len(methods)]}


def main(stubs: str, configs: str) -> dict[str, Any]:
    """Everything; `register` is called twice, as vLLM may."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from backends.vllm.plugin import register

    register()
    from vllm.model_executor.layers.linear import WEIGHT_LOADER_V2_SUPPORTED as v2

    return {
        "missing": missing_from_vllm(Path(stubs)),
        "v2": v2.count("SparseExportLinearMethod"),
        **overrides(json.loads(configs)),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
