"""The part of `report.html` that says what quantised values cost."""

from __future__ import annotations

from html import escape

from exporter.report.quantised import QuantisedPart

_HEAD = ("linear", "method", "change of weights", "largest change", "became 0")
_MEASURED = ("output error", "if only rounded")


def quantised_html(part: QuantisedPart | None) -> str:
    """Two tables; nothing where values are as they were."""
    if part is None:
        return ""
    pairs = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in part.lines())
    measured = part.errors is not None
    head = "".join(f"<th>{c}</th>" for c in (*_HEAD, *(_MEASURED if measured else ())))
    rows: list[str] = []
    for name, m in part.modules.items():
        cells = [f"{m.weight:.3g}", f"{m.weight_max:.3g}", f"{m.zeroed:,}"]
        if measured:
            cells += ["" if e is None else f"{e:.3g}" for e in (m.error, m.error_rounded)]
        numbers = "".join(f'<td class="n">{c}</td>' for c in cells)
        rows.append(f"<tr><td>{escape(name)}</td><td>{escape(m.method)}</td>{numbers}</tr>")
    return (
        f"<h2>What quantised values cost</h2><table>{pairs}</table>"
        "<details><summary>Linear by linear</summary>"
        f"<table><tr>{head}</tr>{''.join(rows)}</table></details>"
    )
