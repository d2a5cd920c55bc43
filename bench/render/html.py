"""The result as one HTML file that needs nothing else: style and plot are inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bench.comparison import CompareResult, RunResult
from bench.render.plot import speed_plot_svg
from bench.render.result_plot import result_plots_svg
from bench.render.rows import Result, facts, sides
from bench.render.terminal import figure_rows, interval_name, speedup_rows
from bench.render.text import cell_rows, figure_table
from bench.results import AbResult, Fingerprint

__all__ = ["ab_html", "ab_section", "page", "result_html", "speed_plot_svg", "table"]

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


_TERMS = """<p>TTFT: from the call to the first new token. TPOT: mean time of each new token after
the first. ITL: each gap between two tokens. A percentile is given only where one value is
expected beyond it.</p>"""
_RATIO = """<p>Ratios are new over base seconds with a block bootstrap interval at 95 % (a block is
a process); p is corrected over all workloads (Holm). A regression is one that lies beyond the
minimum effect as a whole and shows again in an independent re-run.</p>"""


def ab_html(results: list[AbResult]) -> str:
    """A whole page on one or more results."""
    parts = ["<h1>Sparse against dense</h1>", _DEFINITIONS, speed_plot_svg(results)]
    for result in results:
        parts.append(ab_section(result))
        more = result.comparison
        if more is not None and more.cells:
            parts += [_RATIO, table(cell_rows(more)), result_plots_svg(more)]
    return page("sparse-bench ab", parts)


def result_html(result: Result) -> str:
    """A whole page on a run or a comparison."""
    parts = [f"<h1>{escape(result.title)}</h1>"]
    if isinstance(result, CompareResult):
        text = f"{result.verdict.status}: {result.verdict.reason}"
        parts += [f"<p><b>{escape(text)}</b></p>", _RATIO, table(cell_rows(result))]
    parts += [result_plots_svg(result), "<h2>Figures</h2>", _TERMS, table(figure_table(result))]
    parts += ["<h2>Artefacts</h2>", table(_fact_rows(result))]
    parts.append("".join(f"<p>{escape(note)}</p>" for note in result.notes))
    machine = result.fingerprint if isinstance(result, RunResult) else result.new_fingerprint
    parts.append(f"<p>{escape(_machine(machine))}</p>")
    return page(f"sparse-bench {result.kind}", parts)


def _fact_rows(result: Result) -> list[list[str]]:
    found = sides(result)
    head = ["", *(info.label for _, info, _ in found)]
    columns = [facts(info) for _, info, _ in found]
    body = [
        [
            f"{metric}, {unit}" if unit else metric,
            *(f"{c[i][2]:,.4g}" if c[i][2] is not None else c[i][3] for c in columns),
        ]
        for i, (metric, unit, _, _) in enumerate(columns[0])
    ]
    return [head, *body]


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
