"""FusedModel -> FusedModel with codes and scales, before a target sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from exporter.contract import QuantiseRequest, Quantises, Target
from exporter.model import FusedModel, FusedTensor, Quantised
from exporter.quantise.rounding import Dequantised, Rounded
from exporter.quantise.scales import spans


def wanted(target: Target) -> QuantiseRequest | None:
    """What a target asks for; None where it is none of those that ask.

    Raises:
        UsageError: `target-option`.
    """
    asks = getattr(target, "quantisation", None)
    return cast(Quantises, target).quantisation() if callable(asks) else None


def quantise(model: FusedModel, request: QuantiseRequest) -> FusedModel:
    """`model` with the weights that `request` means as codes and scales; the others as they are.

    Raises:
        UsageError: `target-option`.
    """
    tuple(spans(0, request.group))  # refuse a bad group before any weight is read
    found = {t.name: _rounded(t, request) for t in chosen(model, request)}
    return replace(model, tensors={**model.tensors, **found})


def chosen(model: FusedModel, request: QuantiseRequest) -> Iterator[FusedTensor]:
    """Weights of linears, those without a mask only where the request asks for them."""
    for tensor in model.tensors.values():
        if tensor.linear is not None and (request.dense or has_mask(model, tensor.linear.module)):
            yield tensor


def has_mask(model: FusedModel, module: str) -> bool:
    """Whether a linear has pruned positions, from its verdict alone."""
    dense = model.checked.patterns[module].pattern.kind == "dense"
    return module not in model.densified and not dense


def _rounded(tensor: FusedTensor, request: QuantiseRequest) -> FusedTensor:
    block = Rounded(tensor.rows, request.kind, request.group, tensor.name)
    quantised = Quantised(request.kind, request.group, block)
    return replace(tensor, rows=Dequantised(block, request.group), quantised=quantised)
