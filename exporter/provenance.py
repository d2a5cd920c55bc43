"""What goes into report.json. No time, no path, no name of a folder, user or host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter import __version__
from exporter.adapters.base import Adapter
from exporter.adapters.identity import LOCAL
from exporter.contract import Diagnostic, Progress, Target
from exporter.fusing import Fused
from exporter.merge.accounting import account
from exporter.merge.measure import measure
from exporter.model import FusedModel
from exporter.report.export import (
    AccountingPart,
    AdapterPart,
    ArtefactPart,
    DiagnosticPart,
    ExportReport,
    ModelPart,
    TargetPart,
)
from exporter.report.inspect import notes_of
from exporter.sparsity.pattern import model_pattern
from exporter.verify.files import list_files
from exporter.verify.result import VerifyReport
from exporter.verify.structure import parse_dtype


def target_options(target: Target) -> dict[str, Any]:
    """The options of a target, which are the fields of its dataclass."""
    if not dataclasses.is_dataclass(target) or isinstance(target, type):
        return {}
    return {f.name: getattr(target, f.name) for f in dataclasses.fields(target) if f.init}


def build_report(
    target: Target,
    fused: Fused,
    adapters: Sequence[tuple[Adapter, float]],
    diagnostics: Sequence[Diagnostic],
    folder: Path,
    verification: VerifyReport,
    progress: Progress | None = None,
) -> ExportReport:
    """The report of a verified artefact in `folder`; equal inputs give equal reports."""
    model, structure = fused.merged, verification.structure
    files, _ = list_files(folder)
    types = {t.name: parse_dtype(t.dtype) for t in target.read_back(folder)}
    figures = measure(model, {n: t for n, t in types.items() if t}, progress)
    merge = {**model.record, "figures": figures}
    accounting = AccountingPart(**dataclasses.asdict(account(model, adapters, figures)))
    told = [*diagnostics, *(Diagnostic("warning", w) for w in [accounting.warning()] if w)]
    return ExportReport(
        tool=f"sparse-export {__version__}",
        target=_target_part(target),
        model=_model_part(model),
        adapters=tuple(_adapter_part(a, w) for a, w in adapters),
        merge=merge,
        accounting=accounting,
        costs=fused.costs,
        quantised=fused.quantised,
        diagnostics=tuple(DiagnosticPart(**dataclasses.asdict(d)) for d in told),
        artefact=ArtefactPart(
            files=files,
            tensor_bytes=structure.tensor_bytes if structure else 0,
            total_bytes=sum(files.values()),
            sparsity_after=_sparsity_after(model, structure.zero_values if structure else 0),
        ),
        verification=verification.model_dump(mode="json"),
    )


def _sparsity_after(model: FusedModel, zeros: int) -> float:
    weights = sum(p.out_features * p.in_features for p in model.checked.patterns.values())
    return zeros / weights if weights else 0.0


def _target_part(target: Target) -> TargetPart:
    window = target.window
    return TargetPart(
        name=target.name,
        options=target_options(target),
        engine=window.engine,
        versions=window.versions,
        python=window.python,
        hardware=window.hardware,
        licence=window.licence,
    )


def _model_part(model: FusedModel) -> ModelPart:
    checked = model.checked
    patterns = list(checked.patterns.values())
    weights = sum(p.out_features * p.in_features for p in patterns)
    kept = sum(p.kept for p in patterns)
    return ModelPart(
        family=model.spec.family,
        layers=model.spec.layers,
        linears=len(patterns),
        sparsity=1.0 - kept / weights if weights else 0.0,
        pattern=str(model_pattern(patterns)),
        tied_head=model.tied,
        mask_origin=checked.masks.origin,
        dropped=checked.dropped,
        notes=notes_of(checked),
    )


def _adapter_part(adapter: Adapter, weight: float) -> AdapterPart:
    facts: Mapping[str, Any] = {k: v for k, v in adapter.facts.items() if k not in LOCAL}
    return AdapterPart(
        family=adapter.family,
        weight=weight,
        modules=len(adapter.deltas),
        tensors_used=adapter.tensors_used,
        facts=facts,
    )
