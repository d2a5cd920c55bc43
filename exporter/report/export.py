"""The report of one export: what went in, what was done, what was proved. No time, no host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.report.costs import CostsPart
from exporter.report.inspect import NoteEntry
from exporter.report.quantised import QuantisedPart

SCHEMA = 1
MOST_VANISHED = 0.25  # of an adapter's changes, before it is worth a warning


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetPart(_Frozen):
    """The target, its options and the engine versions that the artefact is meant for."""

    name: str
    options: Mapping[str, Any]
    engine: str
    versions: str
    python: str
    hardware: str
    licence: str


class ModelPart(_Frozen):
    """The base model; folders stay unnamed, the manifest's digests tell them apart."""

    family: str
    layers: int
    linears: int
    sparsity: float
    pattern: str
    tied_head: bool
    mask_origin: str
    dropped: Mapping[str, str]
    notes: tuple[NoteEntry, ...] = ()


class AdapterPart(_Frozen):
    """One adapter as it was applied, in the order given."""

    family: str
    weight: float
    modules: int
    tensors_used: int
    facts: Mapping[str, Any]


class OverlapPart(_Frozen):
    """Where the index sets of several S2FT adapters meet; `exporter.adapters.s2ft_overlap`."""

    kinds: tuple[Literal["rows", "cols"], ...]
    sizes: tuple[int, ...]
    shared: int
    elements: int


class AccountingPart(_Frozen):
    """What became of the adapters; see `exporter.merge.accounting.Accounting`."""

    tensors_found: int
    tensors_used: int
    linears: int
    linears_adapted: int
    linears_changed: int
    unchanged: tuple[str, ...]
    replaced: int
    added_to: int
    elements_changed: int
    elements_vanished: int | None
    overlaps: Mapping[str, OverlapPart]

    @property
    def share_vanished(self) -> float:
        """Of the elements that the adapters change; 0 where it is not known."""
        return (self.elements_vanished or 0) / max(1, self.elements_changed)

    def warning(self) -> str | None:
        """That much of the training is not in the artefact, and what to do; None if it is."""
        if self.share_vanished <= MOST_VANISHED:
            return None
        return (
            f"{self.share_vanished:.0%} of the adapters' changes are smaller than the stored type "
            "can hold beside the weight, and vanished: the artefact is nearer to the base than "
            "what was trained. More bits keep them: values=fp16 or fp32 where the target has "
            "`values`, else --dtype float32"
        )

    def lines(self) -> tuple[str, ...]:
        """What a person reads."""
        if not self.tensors_found:
            return ()
        changed = f"{self.linears_changed} of {self.linears_adapted} adapted linears changed"
        lines = [f"{self.tensors_used} of {self.tensors_found} adapter tensors used", changed]
        if self.replaced or self.added_to:
            lines.append(f"{self.replaced} tensors replaced, {self.added_to} added to")
        if self.elements_vanished is not None:
            lines.append(
                f"{self.elements_vanished:,} of {self.elements_changed:,} changes vanished in "
                f"rounding ({self.share_vanished:.2%})"
            )
        if self.overlaps:
            shared = sum(o.shared for o in self.overlaps.values())
            both = sum(o.elements for o in self.overlaps.values())
            lines.append(
                f"S2FT adapters meet on {len(self.overlaps)} linears: {shared:,} rows or columns "
                f"chosen more than once, {both:,} elements changed by more than one"
            )
        return tuple(lines)


class DiagnosticPart(_Frozen):
    """What the target said before anything was written."""

    level: Literal["note", "warning", "refusal"]
    message: str
    where: str


class ArtefactPart(_Frozen):
    """What was written."""

    files: Mapping[str, int]  # name -> bytes
    tensor_bytes: int
    total_bytes: int
    sparsity_after: float


class ExportReport(_Frozen):
    """`report.json` of an artefact. Equal inputs give equal reports."""

    schema_version: int = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    tool: str
    target: TargetPart
    model: ModelPart
    adapters: tuple[AdapterPart, ...]
    merge: Mapping[str, Any]
    accounting: AccountingPart
    costs: CostsPart | None = None  # with --calibration
    quantised: QuantisedPart | None = None  # where the target stores codes and scales
    diagnostics: tuple[DiagnosticPart, ...]
    artefact: ArtefactPart
    verification: Mapping[str, Any]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Measured(_Frozen):
    """What this run cost; printed and in `--json`, never in the folder."""

    seconds: Mapping[str, float]  # per stage
    peak_rss_bytes: int  # of this process, engines apart
    baseline_rss_bytes: int  # after the imports, before the first tensor
    largest_tensor_bytes: int  # float32
    choices: Mapping[str, str] = Field(default_factory=dict)  # kind of linear -> how it runs here
