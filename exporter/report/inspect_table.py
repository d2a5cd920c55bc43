"""The inspect report as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.report.inspect import InspectReport, NoteEntry
from exporter.report.inspect_grid import Cell, Grid, Row, build_grid, printable

MAX_ROWS = 40
MAX_ROLES = 12
_TOLD = {
    "negative-zeros": "negative zeros, counted as zeros",
    "denormals": "denormal values",
    "all-zero": "values of tensors that are zero throughout",
    "zero-rows": "rows that are zero throughout",
    "kept-zeros": "zeros that the masks file keeps",
    "dtype-not-of-config": "tensors stored in another type than config.json names",
}


def render_table(report: InspectReport, console: Console) -> None:
    """Sparsity per layer and module, totals, and notes. Long models show runs of layers."""
    grid = build_grid(report, MAX_ROWS)
    plain = len(report.totals.patterns) == 1
    table = Table(
        box=box.SIMPLE, show_edge=False, show_footer=True, padding=(0, 1 if plain else 0, 0, 0)
    )
    shown = grid.roles[:MAX_ROLES]
    columns = grid.columns
    table.add_column("layer", "all", justify="right", no_wrap=True)
    for role in shown:
        table.add_column(
            Text(printable(role)), _text(columns.cells.get(role), plain), justify="right"
        )
    table.add_column("all", _text(columns.whole, plain), justify="right")
    for row in grid.rows:
        table.add_row(*_line(row, shown, plain))
    console.print(_title(report, plain))
    console.print(table)
    for line in _below(report, grid):
        console.print(Text(line))


def _title(report: InspectReport, plain: bool) -> Text:
    totals = report.totals
    pattern = totals.pattern if plain else f"{totals.pattern} ({_counts(report)})"
    name = printable(report.model)
    return Text(f"{name}: {totals.linears} linears, {totals.sparsity:.1%} zeros, {pattern}")


def _counts(report: InspectReport) -> str:
    return ", ".join(f"{count} {label}" for label, count in report.totals.patterns.items())


def _line(row: Row, roles: tuple[str, ...], plain: bool) -> list[Text]:
    cells = [_text(row.cells.get(role), plain) for role in roles]
    return [Text(row.label), *cells, _text(row.whole, plain)]


def _text(cell: Cell | None, plain: bool) -> Text:
    if cell is None:
        return Text("")
    return Text(f"{100 * cell.sparsity:.1f}" if plain else cell.text)


def note_lines(notes: Iterable[NoteEntry]) -> list[str]:
    """One line for each kind of note: how many values, and the first tensor."""
    values: Counter[str] = Counter()
    first: dict[str, str] = {}
    for note in notes:
        values[note.what] += note.count
        first.setdefault(note.what, printable(note.tensor))
    return [f"{n} {_TOLD.get(what, what)}; first {first[what]}" for what, n in values.items()]


def _below(report: InspectReport, grid: Grid) -> list[str]:
    lines = ["Cells: percent of zeros, over several linears by weight."]
    if len(report.totals.patterns) > 1:
        lines[0] += " Bare: unstructured; N:M: N kept of M inputs; var.: several patterns."
    hidden = len(grid.roles) - MAX_ROLES
    if hidden > 0:
        lines.append(f"{hidden} further modules are in --json and --html.")
    if report.family is None:
        lines.append("Unknown architecture: all 2-D weights but embeddings, head and norms.")
    if report.mask_origin != "zeros":
        lines.append(f"Masks read from {printable(report.mask_origin)}.")
    lines += [f"Note: {line}." for line in note_lines(report.notes)]
    if report.dropped:
        lines.append(f"Not exported: {len(report.dropped)} tensors (see --json).")
    return lines
