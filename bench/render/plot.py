"""The speed plot as inline SVG: ratio with interval, a dot a round, and tokens/s of both sides."""

from __future__ import annotations

import io
import re
from typing import Any

from bench.extras import need
from bench.results import AbResult

DENSE_COLOUR, SPARSE_COLOUR = "#5b6770", "#0b7a75"
METRICS = ("decode", "prefill", "ttft")


def speed_plot_svg(results: list[AbResult]) -> str:
    """One row of three panels for each result; an `<svg>` element without external references.

    Raises:
        UsageError: `usage` where matplotlib is not installed.
    """
    # matplotlib is slow to import: only a plot pays for it.
    rc_context: Any = need("matplotlib").rc_context
    figure_class: Any = need("matplotlib.figure").Figure
    canvas_class: Any = need("matplotlib.backends.backend_svg").FigureCanvasSVG
    # A fixed salt and no date: equal results give equal bytes.
    with rc_context({"svg.hashsalt": "sparse-bench", "svg.fonttype": "path"}):
        figure = figure_class(figsize=(9.0, 2.6 * len(results)), layout="constrained")
        canvas_class(figure)
        axes = figure.subplots(len(results), 3, squeeze=False, width_ratios=(5, 2, 2))
        for row, result in zip(axes, results, strict=True):
            _ratio_panel(row[0], result)
            _rate_panel(row[1], result, "decode")
            _rate_panel(row[2], result, "prefill")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return inline(out.getvalue())


def round_speedups(result: AbResult, metric: str) -> list[float]:
    """Dense over sparse seconds of each round, for "decode", "prefill" or "ttft"."""
    field = {"decode": "tpot", "prefill": "prefill_seconds", "ttft": "ttft"}[metric]
    return [getattr(r.dense, field) / getattr(r.sparse, field) for r in result.rounds]


def _ratio_panel(axes: Any, result: AbResult) -> None:
    for y, metric in enumerate(METRICS):
        interval = getattr(result.speedup, metric)
        dots = round_speedups(result, metric)
        axes.plot(dots, [y - 0.2] * len(dots), ".", color=SPARSE_COLOUR, alpha=0.45)
        axes.plot([interval.low, interval.high], [y, y], color=SPARSE_COLOUR, linewidth=3)
        axes.plot([interval.median], [y], "D", color=SPARSE_COLOUR)
        axes.annotate(
            f"{interval.median:.2f}x", (interval.median, y), xytext=(0, -14), ha="center",
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.axvline(1.0, color=DENSE_COLOUR, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(METRICS)), ["decode", "prefill", "TTFT"])
    axes.set_ylim(len(METRICS) - 0.4, -0.6)  # decode on top
    axes.set_xlabel("speedup over dense (right of 1: sparse is faster)", fontsize=8)
    axes.set_title(result.title, loc="left", fontsize=9)


def _rate_panel(axes: Any, result: AbResult, metric: str) -> None:
    sides = (("dense", result.dense, DENSE_COLOUR), ("sparse", result.sparse, SPARSE_COLOUR))
    for y, (_, side, colour) in enumerate(sides):
        rate = getattr(side, f"{metric}_tokens_per_second")
        span = [[rate.median - rate.low], [rate.high - rate.median]]
        axes.barh([y], [rate.median], height=0.6, xerr=span, color=colour)
    axes.set_yticks(range(len(sides)), [name for name, _, _ in sides])
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, tokens/s", fontsize=8)


def inline(svg: str) -> str:
    """The bare element: no prolog, no DTD and no RDF block, which name other hosts."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return body.strip()
