"""A page with a bar for each value: what tables of measurements share. No script, no fetch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { text-align: right; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #d7dce2;
  font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto; font: 13px system-ui, sans-serif }
"""
_WIDTH, _LEFT, _BAR, _STEP = 720, 130, 480, 26


def page(title: str, lead: str, body: str) -> str:
    """A whole page around `body`, which is HTML."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    top = f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{top}{body}</body></html>\n'


def section(plot: str, rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A plot, a table whose first row is its head, and a list of notes."""
    lines = [
        "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in row) + "</tr>"
        for tag, row in (("th" if i == 0 else "td", row) for i, row in enumerate(rows))
    ]
    told = "".join(f"<li>{escape(n)}</li>" for n in notes)
    return f"{plot}<table>{''.join(lines)}</table><ul>{told}</ul>"


def bars(values: Sequence[tuple[str, float]], label: str, title: str) -> str:
    """Horizontal bars on a linear scale from zero; names in brackets are what to compare with."""
    top = max(value for _, value in values)
    parts: list[str] = []
    for i, (name, value) in enumerate(values):
        y, length = i * _STEP + 24, _BAR * value / top
        fill = "#9aa4af" if name.startswith("(") else "#2f6fab"
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="18" fill="{fill}"/>'
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 14}">{value:.4g}</text>'
        )
    height = len(values) * _STEP + 32
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(label)}"><text x="{_LEFT}" y="14">{escape(title)}</text>'
        f"{''.join(parts)}</svg>"
    )
