"""Which models a step is written for: those that a `DecoderSpec` describes."""

from __future__ import annotations

from collections.abc import Iterator

from exporter.arch.decoder import DecoderSpec
from exporter.arch.model_spec import ModelSpec
from exporter.contract import Diagnostic
from exporter.errors import InputRefused
from exporter.model import FusedModel

_OTHERS = "write it with --target hf, which runs everywhere transformers does"


def decoder_of(spec: ModelSpec) -> DecoderSpec:
    """`spec` as a step needs it.

    Raises:
        InputRefused: `target-refused`.
    """
    if not isinstance(spec, DecoderSpec):
        raise InputRefused("target-refused", _found(spec), hint=f"{_OTHERS}.".capitalize())
    return spec


def refusals(model: FusedModel) -> Iterator[Diagnostic]:
    """Other architectures, and branches beside the weights."""
    if not isinstance(model.spec, DecoderSpec):
        yield Diagnostic("refusal", f"{_found(model.spec)}; {_OTHERS}")
    if model.branches:
        text = "--on-merge separate: a packed folder has no place for a branch; merge it"
        yield Diagnostic("refusal", text, next(iter(model.branches)))


def _found(spec: ModelSpec) -> str:
    return (
        f"the CPU decoder runs no {spec.family}: rotary positions, RMS norms and one gated MLP a "
        "layer only, as in Llama"
    )
