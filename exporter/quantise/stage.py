"""FusedModel -> FusedModel with codes and scales, before a target sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from exporter.contract import Progress, QuantiseRequest, Quantises, Target
from exporter.errors import UsageError
from exporter.merge.workbench import Workbench
from exporter.model import CheckedModel, FusedModel, FusedTensor, Quantised
from exporter.quantise.rounding import Blocks, Dequantised, Rounded
from exporter.quantise.scales import spans
from exporter.quantise.solve import solve


def wanted(target: Target, calibrated: bool) -> QuantiseRequest | None:
    """What a target asks for; None where it is none of those that ask.

    Args:
        target: any.
        calibrated: whether there is text to measure on.

    Raises:
        UsageError: `target-option`, `calibration-needed`.
    """
    asks = getattr(target, "quantisation", None)
    request = cast(Quantises, target).quantisation() if callable(asks) else None
    if request is None:
        return None
    tuple(spans(0, request.group))  # refuse a bad group before any weight is read
    if request.method == "gptq" and not calibrated:
        raise UsageError(
            "calibration-needed",
            "quantise=gptq without --calibration",
            expected="--calibration FILE: a UTF-8 text, or token ids (.json, .safetensors)",
        )
    return request


def quantise(
    model: FusedModel,
    request: QuantiseRequest,
    bench: Workbench | None = None,
    progress: Progress | None = None,
) -> FusedModel:
    """`model` with the weights that `request` means as codes and scales; the others as they are.

    Rounding is done whenever rows are asked for. `gptq` solves here, one linear in memory, and
    stores the codes on `bench`, which must outlive the model; a linear that calibration did not
    observe is rounded.

    Raises:
        InputRefused: `value-overflow` (rounding: when rows are read), `output-failed`.
    """
    tensors, names = dict(model.tensors), [t.name for t in chosen(model, request)]
    for done, name in enumerate(names):
        tensors[name] = _quantised(model, model.tensors[name], request, bench)
        if progress is not None:
            progress("choose codes", done + 1, len(names))
    return replace(model, tensors=tensors)


def chosen(model: FusedModel, request: QuantiseRequest) -> Iterator[FusedTensor]:
    """Weights of linears, those without a mask only where the request asks for them."""
    for tensor in model.tensors.values():
        if tensor.linear is not None and (request.dense or has_mask(model, tensor.linear.module)):
            yield tensor


def modules_of(checked: CheckedModel, request: QuantiseRequest) -> frozenset[str]:
    """Linears that `request` means, as far as the base tells: a merge may make some dense."""
    patterns = checked.patterns.items()
    return frozenset(m for m, p in patterns if request.dense or p.pattern.kind != "dense")


def has_mask(model: FusedModel, module: str) -> bool:
    """Whether a linear has pruned positions, from its verdict alone."""
    dense = model.checked.patterns[module].pattern.kind == "dense"
    return module not in model.densified and not dense


def _quantised(
    model: FusedModel, tensor: FusedTensor, request: QuantiseRequest, bench: Workbench | None
) -> FusedTensor:
    block: Blocks = Rounded(tensor.rows, request.kind, request.group, tensor.name)
    if request.method == "gptq" and bench is not None and tensor.linear is not None:
        gram = bench.gram(tensor.linear.module)
        if gram is not None:
            block = solve(tensor, model.mask(tensor.name), gram(), request, bench)
    quantised = Quantised(request.kind, request.group, block)
    return replace(tensor, rows=Dequantised(block, request.group), quantised=quantised)
