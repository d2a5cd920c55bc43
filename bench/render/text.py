"""Cells and figures as rows of short texts: for the terminal, Markdown and HTML."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.comparison import CompareResult, Figure
from bench.render.rows import Result, sides

# Seconds are told in milliseconds; a rate as it is.
_SHOWN = (
    ("ttft", "TTFT, ms", 1e3),
    ("tpot", "TPOT, ms", 1e3),
    ("itl", "ITL, ms", 1e3),
    ("e2e", "end to end, ms", 1e3),
    ("prefill", "prefill, ms", 1e3),
    ("prefill_tokens_per_second", "prefill, tokens/s", 1.0),
    ("decode_tokens_per_second", "decode, tokens/s", 1.0),
    ("requests_per_second", "requests/s", 1.0),
    ("goodput", "goodput, 1/s", 1.0),
    ("weight_bandwidth", "weights read, GB/s", 1.0),
    ("energy_per_token", "energy a token, J", 1.0),
)


def cell_rows(result: CompareResult) -> list[list[str]]:
    """Head and a row a cell."""
    head = ["workload", "by", "base, ms", "new, ms", "new / base", "p (Holm)", "verdict"]
    body = [
        [
            c.workload,
            c.metric,
            f"{c.base * 1e3:.3f}",
            f"{c.new * 1e3:.3f}",
            f"{c.ratio:.3f} [{c.low:.3f}, {c.high:.3f}]",
            f"{c.p_holm:.2g}",
            c.reason,
        ]
        for c in result.cells
    ]
    body += [[name, "", "", "", "", "", f"not run: {why}"] for name, why in result.left_out.items()]
    return [head, *body]


def figure_table(result: Result, *, percentiles: bool = True) -> list[list[str]]:
    """Head and, for each workload, a row a metric with one column a side."""
    found = sides(result)
    head = ["workload", "metric", *(info.label for _, info, _ in found)]
    body: list[list[str]] = []
    for i, workload in enumerate(found[0][2]):
        for metric, words, scale in _SHOWN:
            figures = [side[2][i].figure(metric) for side in found if i < len(side[2])]
            if any(f is not None and f.value is not None for f in figures):
                body.append([workload.workload, words, *(_text(f, scale) for f in figures)])
        for metric, words, scale in _SHOWN[:4] if percentiles else ():
            figures = [side[2][i].figure(metric) for side in found if i < len(side[2])]
            body += _percentile_rows(workload.workload, words, figures, scale)
    return [head, *body]


def print_result(result: Result, console: Console) -> None:
    """Tables, notes and verdict."""
    if isinstance(result, CompareResult):
        console.print(_rich(cell_rows(result), result.title))
    title = "figures: median [95 % interval]; percentiles are in the files"
    console.print(_rich(figure_table(result, percentiles=False), title))
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    if isinstance(result, CompareResult):
        verdict = f"verdict: {result.verdict.status}: {result.verdict.reason}"
        console.print(verdict, highlight=False, markup=False)
    else:
        for workload in result.workloads:
            if workload.left_out:
                text = f"not run: {workload.workload}: {workload.left_out}"
                console.print(text, highlight=False, markup=False)


def _percentile_rows(
    workload: str, words: str, figures: list[Figure | None], scale: float
) -> list[list[str]]:
    levels = [p.text for f in figures if f is not None for p in f.percentiles if p.value]
    out: list[list[str]] = []
    for level in dict.fromkeys(levels):
        texts: list[str] = []
        for figure in figures:
            ps = [] if figure is None else [p for p in figure.percentiles if p.text == level]
            texts.append(_span(ps[0].value, ps[0].low, ps[0].high, scale) if ps else "-")
        out.append([workload, f"{level} of {words}", *texts])
    return out


def _text(figure: Figure | None, scale: float) -> str:
    if figure is None or figure.value is None:
        return "not available"
    return _span(figure.value, figure.low, figure.high, scale)


def _span(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    if value is None:
        return "n too small"
    if low is None or high is None:
        return f"{value * scale:.4g}"
    return f"{value * scale:.4g} [{low * scale:.4g}, {high * scale:.4g}]"


def _rich(rows: list[list[str]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table
