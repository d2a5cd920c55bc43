"""Our operators in onnxruntime: whether a graph asks for them, and the library that has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from backends.decoder_graph.options import DOMAIN, OPERATORS
from backends.packed.kernels.compile import LIBRARY
from backends.packed.kernels.library import Library, library
from exporter.errors import EngineUnfit

__all__ = ["asked", "operators", "register", "told"]


def asked(model: Path | bytes) -> int | None:
    """The version of our operators that a graph asks for; None for one that asks for none.

    A graph that cannot be read asks for none: onnxruntime says what is wrong with it.
    """
    try:
        raw = model if isinstance(model, bytes) else model.read_bytes()
        opsets = onnx.ModelProto.FromString(raw).opset_import
    except (OSError, DecodeError):
        return None
    return next((each.version for each in opsets if each.domain == DOMAIN), None)


def operators() -> Library:
    """The library, once it is known to have operators that run here.

    Raises:
        EngineUnfit: `engine-missing` where it is not built or cannot be loaded; `engine-unfit`
            where it has other operators, or SPARSE_EXPORT_ISA names what does not run here.
    """
    found = library(LIBRARY)
    if found.operators != OPERATORS:
        raise EngineUnfit(
            "engine-unfit",
            f"the CPU kernels have version {found.operators} of the operators {DOMAIN!r}",
            expected=f"version {OPERATORS}; build them again: {_BUILD}",
            file=str(LIBRARY),
        )
    found.choose()
    return found


def register(options: Any, version: int) -> Library:
    """Give onnxruntime's session options the operators that a graph asks for.

    Raises:
        EngineUnfit: as `operators`; `engine-unfit` also for a graph that asks for another version;
            `engine-refused` where onnxruntime does not take the library.
    """
    found = operators()
    if version != OPERATORS:
        raise EngineUnfit(
            "engine-unfit",
            f"the graph asks for version {version} of the operators {DOMAIN!r}",
            expected=f"version {OPERATORS}: export the model again with this sparse-export",
            file="model.onnx",
        )
    options.register_custom_ops_library(str(LIBRARY))
    return found


def told(metadata: Mapping[str, str]) -> dict[str, Any]:
    """For reports: how many nodes of a loaded graph are ours, and their instruction set."""
    nodes = metadata.get("sparse_export.packed_linears", "")
    if not nodes.isdecimal() or len(nodes) > 9:  # a longer one is nobody's count
        return {}
    return {"packed_linears": int(nodes), "isa": operators().choose().label}


_BUILD = "`python -m backends.packed.kernels.compile`"
