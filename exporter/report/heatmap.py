"""Heat map of a model's sparsity, layers x modules, as inline SVG without script or font file."""

from __future__ import annotations

from html import escape

from exporter.report.inspect import InspectReport
from exporter.report.inspect_grid import Cell, Grid, Row, build_grid, printable

_CELL_W, _CELL_H, _LEFT, _TOP = 84, 20, 58, 24
_LEGEND_W = 800
# ColorBrewer "Blues" (Brewer, Harrower): one hue, ordered in grey too, so it prints.
_STOPS = (
    (247, 251, 255),
    (222, 235, 247),
    (198, 219, 239),
    (158, 202, 225),
    (107, 174, 214),
    (66, 146, 198),
    (33, 113, 181),
    (8, 81, 156),
    (8, 48, 107),
)
_WHITE_FROM = 0.70  # share of zeros from which white text has the better contrast


def heatmap_svg(report: InspectReport) -> str:
    """One `<svg>` element: a cell per layer and module, its colour and text the share of zeros.

    The scale runs from 0 to 100 % always, so maps of different models compare. N:M and
    structured patterns stand beside the number; a bare number is unstructured.
    """
    grid = build_grid(report)
    columns = [*grid.roles, "all"]
    width = max(_LEFT + _CELL_W * len(columns) + 8, _LEGEND_W)
    height = _TOP + _CELL_H * (len(grid.rows) + 1) + 62
    totals = report.totals
    label = f"{printable(report.model)}: {totals.sparsity:.1%} zeros in {totals.linears} linears"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heatmap" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11">',
        f"<title>{escape(label)}</title>",
        *(_head(i, role) for i, role in enumerate(columns)),
        *(_row(grid, row, i) for i, row in enumerate(grid.rows)),
        _row(grid, grid.columns, len(grid.rows), gap=6),
        _legend(height - 34),
        "</svg>",
    ]
    return "\n".join(parts)


def _head(column: int, role: str) -> str:
    x = _LEFT + _CELL_W * column + _CELL_W // 2
    text = escape(printable(role))
    short = text if len(role) <= 12 else escape(printable(role)[:11]) + "…"
    return (
        f'<text x="{x}" y="{_TOP - 8}" text-anchor="middle" font-weight="600">{short}'
        f"<title>{text}</title></text>"
    )


def _row(grid: Grid, row: Row, place: int, gap: int = 0) -> str:
    y = _TOP + _CELL_H * place + gap
    middle = y + _CELL_H // 2 + 4
    parts = [f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(row.label)}</text>']
    cells = [row.cells.get(role) for role in grid.roles] + [row.whole]
    for column, cell in enumerate(cells):
        if cell is not None:
            where = f"layer {row.label}, {[*grid.roles, 'all'][column]}"
            parts.append(_cell(_LEFT + _CELL_W * column, y, cell, where))
    return "".join(parts)


def _cell(x: int, y: int, cell: Cell, where: str) -> str:
    ink = "#fff" if cell.sparsity >= _WHITE_FROM else "#111"
    several = f", {cell.linears} linears" if cell.linears > 1 else ""
    hint = f"{printable(where)}: {cell.sparsity:.2%} zeros, {cell.pattern}{several}"
    return (
        f"<g><title>{escape(hint)}</title>"
        f'<rect x="{x}" y="{y}" width="{_CELL_W - 1}" height="{_CELL_H - 1}" '
        f'fill="{colour(cell.sparsity)}" stroke="#ccd5de" stroke-width="0.5"/>'
        f'<text x="{x + _CELL_W // 2}" y="{y + _CELL_H // 2 + 4}" text-anchor="middle" '
        f'fill="{ink}">{escape(cell.text)}</text></g>'
    )


def _legend(y: int) -> str:
    step = 24
    swatches = "".join(
        f'<rect x="{_LEFT + step * i}" y="{y}" width="{step}" height="10" '
        f'fill="{colour(i / 10)}" stroke="#ccd5de" stroke-width="0.5"/>'
        for i in range(11)
    )
    ticks = "".join(
        f'<text x="{_LEFT + step * i + 12}" y="{y + 22}" text-anchor="middle">{10 * i}</text>'
        for i in (0, 5, 10)
    )
    words = "percent of zeros; N:M = N kept of M inputs; a bare number is unstructured"
    return f'{swatches}{ticks}<text x="{_LEFT + step * 11 + 10}" y="{y + 9}">{words}</text>'


def colour(share: float) -> str:
    """Fill for a share of zeros, 0 to 1, as `#rrggbb`."""
    at = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(at), len(_STOPS) - 2)
    mix = [
        round(a + (b - a) * (at - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)
    ]
    return "#" + "".join(f"{c:02x}" for c in mix)
