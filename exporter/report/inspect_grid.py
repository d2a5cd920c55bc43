"""Layers x modules as a grid of cells: what the table and the heat map both draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exporter.report.inspect import InspectReport, LinearEntry


@dataclass(frozen=True)
class Cell:
    """One or more linears: share of zeros by weights, and their pattern ("various" if several)."""

    sparsity: float
    pattern: str
    linears: int

    @property
    def text(self) -> str:
        """Percent of zeros and pattern: "50.0 2:4"; a bare number is unstructured."""
        short = {"unstructured": "", "various": "var."}.get(self.pattern, self.pattern)
        return f"{100 * self.sparsity:.1f} {short}".rstrip()


@dataclass(frozen=True)
class Row:
    """One layer, or a run of layers ("3-7"); `cells` by role, `whole` over the row."""

    label: str
    cells: Mapping[str, Cell]
    whole: Cell


@dataclass(frozen=True)
class Grid:
    """Roles in order of appearance, rows in order of layers (those outside layers last)."""

    roles: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: Row  # over all rows


def build_grid(report: InspectReport, max_rows: int | None = None) -> Grid:
    """The grid of a report; more than `max_rows` layers are put together in equal runs."""
    roles = tuple(dict.fromkeys(x.role for x in report.linears))
    layers = sorted({x.layer for x in report.linears if x.layer is not None})
    run = 1 if not max_rows else max(1, -(-len(layers) // max_rows))
    place = {layer: i // run for i, layer in enumerate(layers)}
    groups: dict[int, list[LinearEntry]] = {i: [] for i in sorted(set(place.values()))}
    outside: list[LinearEntry] = []
    for linear in report.linears:
        (outside if linear.layer is None else groups[place[linear.layer]]).append(linear)
    rows = [_row(_label(group), group) for group in groups.values()]
    if outside:
        rows.append(_row("-", outside))
    return Grid(roles, tuple(rows), _row("all", report.linears))


def _label(linears: Iterable[LinearEntry]) -> str:
    layers = [x.layer for x in linears if x.layer is not None]
    low, high = min(layers), max(layers)
    return str(low) if low == high else f"{low}-{high}"


def _row(label: str, linears: Sequence[LinearEntry]) -> Row:
    by_role: dict[str, list[LinearEntry]] = {}
    for linear in linears:
        by_role.setdefault(linear.role, []).append(linear)
    return Row(label, {role: _cell(group) for role, group in by_role.items()}, _cell(linears))


def _cell(linears: Sequence[LinearEntry]) -> Cell:
    weights = sum(x.out_features * x.in_features for x in linears)
    kept = sum(x.kept for x in linears)
    patterns = {x.pattern for x in linears}
    pattern = patterns.pop() if len(patterns) == 1 else "various"
    return Cell(1.0 - kept / weights if weights else 0.0, pattern, len(linears))


def printable(text: str) -> str:
    """`text` from a file, with control characters made visible as "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)
