"""How sparse a model is, linear by linear, as one object: `sparse-export inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from exporter.check.claims import check_claim
from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.errors import InputRefused
from exporter.model import CheckedModel, Note
from exporter.report.inspect_any import FoundLinear, read_any
from exporter.sparsity.conventions import Claim
from exporter.sparsity.pattern import LinearPattern, model_pattern
from exporter.store.checkpoint import Checkpoint

SCHEMA = 1


def _named(json: str, python: str, default: Any = ...) -> Any:
    """A field whose JSON name is no good Python name; both are read."""
    return Field(default, serialization_alias=json, validation_alias=AliasChoices(json, python))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearEntry(_Frozen):
    """One linear, weight `[out, in]`. `pattern` is a label: "dense", "unstructured", "2:4"."""

    module: str
    layer: int | None = Field(description="index of its layer; null outside the layers")
    role: str = Field(description="q, k, v, o, gate, up or down; else the module's last name")
    out_features: int = _named("out", "out_features")
    in_features: int = _named("in", "in_features")
    sparsity: float = Field(description="share of zeros")
    pattern: str
    kept: int
    zero_rows: int
    zero_columns: int
    group_max: Mapping[str, int] = Field(
        description="M -> most kept values in any group of M consecutive inputs"
    )


class Totals(_Frozen):
    """Over all linears, weighted by their sizes."""

    linears: int
    weights: int
    kept: int
    sparsity: float
    pattern: str = Field(description="label of the whole: a linear's, or mixed n:m, structured")
    patterns: Mapping[str, int] = Field(description="label -> number of linears")


class NoteEntry(_Frozen):
    """Something lawful that a user may want to know about one tensor."""

    tensor: str
    what: str
    count: int


class InspectReport(_Frozen):
    """Result of `inspect`; the JSON has the field names' aliases."""

    schema_version: int = _named("schema", "schema_version", SCHEMA)
    model: str = Field(description="name of the folder")
    family: str | None = Field(description="null where the architecture is not known to us")
    mask_origin: str = Field(description='"zeros" or the name of the masks file')
    totals: Totals
    linears: tuple[LinearEntry, ...]
    notes: tuple[NoteEntry, ...]
    dropped: Mapping[str, str] = Field(description="tensor -> why it would not be exported")


def inspect_model(
    checkpoint: Checkpoint,
    masks: Path | None = None,
    *,
    expect: Claim | None = None,
    progress: Progress | None = None,
) -> InspectReport:
    """Check a model and gather its patterns. Reads every value of every linear once.

    An architecture without a data file is read by its 2-D weights; see `inspect_any`.

    Raises:
        InputRefused: as `check_model`; `arch-unsupported` only where no linear is found;
            `pattern-mismatch` where the model is not sparse as `expect` says.
    """
    try:
        checked = check_model(checkpoint, masks=masks, progress=progress)
    except InputRefused as error:
        if error.code != "arch-unsupported":
            raise
        found, notes = read_any(checkpoint, masks, progress)
        if not found:
            raise
        if expect is not None:
            check_claim(expect, [x.pattern for x in found])
        origin = masks.name if masks is not None else "zeros"
        return _report(checkpoint, None, origin, found, notes, {})
    if expect is not None:
        check_claim(expect, checked.patterns.values())
    return report_of(checked)


def report_of(checked: CheckedModel) -> InspectReport:
    """The report of a model that was checked already; reads nothing."""
    found = [
        FoundLinear(x.layer, x.role, checked.patterns[x.module]) for x in checked.spec.linears()
    ]
    family, origin = checked.spec.family, checked.masks.origin
    return _report(checked.checkpoint, family, origin, found, checked.notes, checked.dropped)


def notes_of(checked: CheckedModel) -> tuple[NoteEntry, ...]:
    """What a user may want to know, in the form of the reports."""
    return _entries(checked.notes)


def _report(
    checkpoint: Checkpoint,
    family: str | None,
    origin: str,
    found: Iterable[FoundLinear],
    notes: Iterable[Note],
    dropped: Mapping[str, str],
) -> InspectReport:
    found = list(found)
    return InspectReport(
        model=checkpoint.root.resolve().name,
        family=family,
        mask_origin=origin,
        totals=_totals([x.pattern for x in found]),
        linears=tuple(_entry(x) for x in found),
        notes=_entries(notes),
        dropped=dict(dropped),
    )


def _entries(notes: Iterable[Note]) -> tuple[NoteEntry, ...]:
    return tuple(NoteEntry(tensor=n.tensor, what=n.what, count=n.count) for n in notes)


def _totals(linears: list[LinearPattern]) -> Totals:
    whole = model_pattern(linears)
    return Totals(
        linears=len(linears),
        weights=sum(x.out_features * x.in_features for x in linears),
        kept=sum(x.kept for x in linears),
        sparsity=1.0 - whole.density,
        pattern=whole.label,
        patterns=whole.labels,
    )


def _entry(found: FoundLinear) -> LinearEntry:
    linear = found.pattern
    return LinearEntry(
        module=linear.module,
        layer=found.layer,
        role=found.role,
        out_features=linear.out_features,
        in_features=linear.in_features,
        sparsity=linear.sparsity,
        pattern=linear.pattern.label,
        kept=linear.kept,
        zero_rows=linear.zero_rows,
        zero_columns=linear.zero_columns,
        group_max={str(m): n for m, n in linear.group_max.items()},
    )
