"""The result as one HTML file that needs nothing else: style and plot are inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bench.render.plot import speed_plot_svg
from bench.render.terminal import figure_rows, interval_name, speedup_rows
from bench.results import AbResult, Fingerprint

__all__ = ["ab_html", "ab_section", "page", "speed_plot_svg", "table"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: #111; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
"""

_DEFINITIONS = """<p>TTFT: from the call to the first new token, prefill included. TPOT: mean time
of each new token after the first. Decode tokens/s is 1 / TPOT; prefill tokens/s is the prompt's
length over the time of a prefill alone. Each speedup is the median over rounds of dense seconds
over sparse seconds in the same round; above 1 the sparse side is faster.</p>"""


def ab_html(results: list[AbResult]) -> str:
    """A whole page on one or more results."""
    parts = ["<h1>Sparse against dense</h1>", _DEFINITIONS, speed_plot_svg(results)]
    return page("sparse-bench ab", [*parts, *(ab_section(r) for r in results)])


def ab_section(result: AbResult) -> str:
    """Tables, notes, verdict and machine of one result, to be put into any page."""
    figures = [("", f"dense: {result.dense.label}", f"sparse: {result.sparse.label}")]
    speedups = [("speedup", interval_name(result.speedup.decode))]
    verdict = f"{result.verdict.status}: {result.verdict.reason}"
    notes = "".join(f"<li>{escape(n)}</li>" for n in result.notes)
    return "\n".join(
        (
            f"<h2>{escape(result.title)}</h2>",
            table([*speedups, *speedup_rows(result)]),
            table([*figures, *figure_rows(result)]),
            f"<p>Verdict: {escape(verdict)}</p>",
            f"<ul>{notes}</ul>" if notes else "",
            f"<p>{escape(_machine(result.fingerprint))}</p>",
        )
    )


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page of HTML `parts`; `style` is added to the rules that all pages share."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>"
    )
    return "\n".join((head, *parts, "</body></html>\n"))


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of text, which is escaped; the first row is its head."""
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{escape(c)}</th>" for c in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"


def _machine(machine: Fingerprint) -> str:
    flags = ", ".join(name for name, on in machine.cpu_flags.items() if on) or "none known"
    memory = f"{machine.memory_bytes / 1e9:.1f} GB" if machine.memory_bytes else "memory unknown"
    packages = ", ".join(f"{k} {v}" for k, v in machine.packages.items())
    return (
        f"{machine.cpu} ({flags}), {machine.cores_usable} of {machine.cores_total} cores, "
        f"{memory}, governor {machine.governor or 'unknown'}, load at start "
        f"{machine.load_at_start}; {machine.system}, Python {machine.python}; {packages}"
    )
