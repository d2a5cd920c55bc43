"""The table of merge policies as one HTML page, with a bar for each perplexity."""

from __future__ import annotations

from html import escape

from exporter.report.policies import HEAD, PoliciesReport, cells, notes

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


def policies_html(report: PoliciesReport) -> str:
    """The page as text; no script, nothing fetched."""
    title = "Merge policies"
    lead = f"{', '.join(report.adapters)} on a sparse {report.family}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    parts = [f"<h1>{title}</h1><p>{escape(lead)}</p>", policies_section(report)]
    body = "".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def policies_section(report: PoliciesReport) -> str:
    """Plot, table and notes, to be put into any page."""
    rows = [HEAD, *cells(report)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in row) + "</tr>"
        for tag, row in (("th" if i == 0 else "td", row) for i, row in enumerate(rows))
    ]
    told = "".join(f"<li>{escape(n)}</li>" for n in notes(report))
    return f"{_plot(report)}<table>{''.join(lines)}</table><ul>{told}</ul>"


def _plot(report: PoliciesReport) -> str:
    """Horizontal bars on a linear scale from zero."""
    bars = [("(base alone)", report.perplexity_base), ("(unmerged)", report.perplexity_unmerged)]
    bars += [(r.policy, r.perplexity) for r in report.rows if r.perplexity is not None]
    top = max(value for _, value in bars)
    parts: list[str] = []
    for i, (name, value) in enumerate(bars):
        y, length = i * _STEP + 24, _BAR * value / top
        fill = "#9aa4af" if name.startswith("(") else "#2f6fab"
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="18" fill="{fill}"/>'
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 14}">{value:.4g}</text>'
        )
    height = len(bars) * _STEP + 32
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="perplexity by merge policy"><text x="{_LEFT}" y="14">perplexity on held-out '
        f"text, less is better</text>{''.join(parts)}</svg>"
    )
