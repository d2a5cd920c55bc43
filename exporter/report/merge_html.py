"""The part of `report.html` that says what the merge cost, in all and module by module."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from exporter.report.costs import merge_lines
from exporter.report.export import ExportReport

_HEAD = ("module", "policy", "norm of the delta", "norm lost", "positions moved")
_CALIBRATED = ("output error", "if only masked")


def merge_html(report: ExportReport) -> str:
    """Two tables; nothing where no weight was merged."""
    figures = report.merge.get("figures", {})
    if not figures:
        return ""
    lines = [*merge_lines(figures), *(report.costs.lines() if report.costs else ())]
    pairs = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in lines)
    head = "".join(f"<th>{c}</th>" for c in (*_HEAD, *(_CALIBRATED if report.costs else ())))
    body = "".join(_row(cells) for cells in _modules(report))
    return (
        f"<h2>What the merge cost</h2><table>{pairs}</table>"
        "<details><summary>Module by module</summary>"
        f"<table><tr>{head}</tr>{body}</table></details>"
    )


def _modules(report: ExportReport) -> Iterable[tuple[str, ...]]:
    for module, f in report.merge["figures"].items():
        cells = (
            module,
            f["policy"],
            f"{f['norm']:.4g}",
            f"{f['norm_lost']:.4g}",
            f"{f['moved']:,}",
        )
        if report.costs is None:
            yield cells
            continue
        cost = report.costs.modules.get(module)
        # What calibration did not measure loses nothing, or is no linear.
        yield *cells, *((f"{cost.error:.3g}", f"{cost.error_masked:.3g}") if cost else ("", ""))


def _row(cells: tuple[str, ...]) -> str:
    first, second, *rest = (escape(c) for c in cells)
    numbers = "".join(f'<td class="n">{c}</td>' for c in rest)
    return f"<tr><td>{first}</td><td>{second}</td>{numbers}</tr>"
