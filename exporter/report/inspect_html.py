"""The inspect report as one HTML page: totals, heat map, notes. No script, no other file."""

from __future__ import annotations

from html import escape
from pathlib import Path

from exporter.errors import InputRefused
from exporter.report.heatmap import heatmap_svg
from exporter.report.inspect import InspectReport
from exporter.report.inspect_grid import printable

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #111; background: #fff; }
h1 { font-size: 1.4rem; margin-bottom: 0.2rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0.8rem 0; }
td, th { padding: 0.15rem 0.9rem 0.15rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.heatmap { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
@media print {
  body { margin: 0; max-width: none; }
  .heatmap { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .scroll { overflow: visible; }
}
"""


def write_inspect_html(report: InspectReport, path: Path) -> None:
    """Write the page.

    Raises:
        InputRefused: `output-failed`.
    """
    try:
        path.write_text(inspect_html(report), encoding="utf-8")
    except OSError as error:
        raise InputRefused("output-failed", str(error), file=str(path)) from error


def inspect_html(report: InspectReport) -> str:
    """The whole page as text. Names from the model are escaped."""
    name = escape(printable(report.model))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sparsity of {name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Sparsity of {name}</h1>
{_totals(report)}
<div class="scroll">
{heatmap_svg(report)}
</div>
{_notes(report)}
</body>
</html>
"""


def _totals(report: InspectReport) -> str:
    totals = report.totals
    patterns = ", ".join(f"{count} {label}" for label, count in totals.patterns.items())
    family = report.family or "unknown: all 2-D weights but embeddings, head and norms"
    rows = (
        ("architecture", family),
        ("linears", f"{totals.linears} with {totals.weights:,} weights, {totals.kept:,} kept"),
        ("zeros", f"{totals.sparsity:.2%}"),
        ("pattern", f"{totals.pattern} ({patterns})"),
        ("masks", "the zeros of the weights" if report.mask_origin == "zeros" else _origin(report)),
    )
    return _table("".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows))


def _origin(report: InspectReport) -> str:
    return f"read from {printable(report.mask_origin)}"


def _notes(report: InspectReport) -> str:
    notes = "".join(
        f"<tr><td>{escape(printable(n.tensor))}</td><td>{escape(n.what)}</td>"
        f'<td class="n">{n.count}</td></tr>'
        for n in report.notes
    )
    dropped = "".join(
        f"<tr><td>{escape(printable(tensor))}</td><td>{escape(printable(reason))}</td></tr>"
        for tensor, reason in report.dropped.items()
    )
    parts = ""
    if notes:
        parts += f"<h2>Notes</h2>{_table(notes)}"
    if dropped:
        parts += f"<h2>Not exported</h2>{_table(dropped)}"
    return parts


def _table(rows: str) -> str:
    return f"<table>{rows}</table>"
