"""Which models the decoder graph is written for: those that a `DecoderSpec` describes."""

from __future__ import annotations

from exporter.arch.model_spec import ModelSpec
from exporter.arch.spec import DecoderSpec
from exporter.contract import Diagnostic
from exporter.errors import InputRefused

_OTHERS = "write it with --target hf, which runs everywhere transformers does"


def decoder_spec(spec: ModelSpec) -> DecoderSpec:
    """`spec` as the graph needs it.

    Raises:
        InputRefused: `target-refused` for an architecture that has no graph (GPT-2).
    """
    if not isinstance(spec, DecoderSpec):
        raise InputRefused("target-refused", _found(spec), hint=f"{_OTHERS}.".capitalize())
    return spec


def no_graph(spec: ModelSpec) -> list[Diagnostic]:
    """The refusal of an architecture that has no graph, else nothing."""
    if isinstance(spec, DecoderSpec):
        return []
    return [Diagnostic("refusal", f"{_found(spec)}; {_OTHERS}")]


def _found(spec: ModelSpec) -> str:
    return f"no ONNX graph for {spec.family}: rotary positions and gated MLPs only, as in Llama"
