"""Plots of a result as inline SVG: distributions, ratios, throughput against batch, roofline."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from bench.comparison import CompareResult, RunResult
from bench.extras import need
from bench.render.plot import DENSE_COLOUR, SPARSE_COLOUR, inline
from bench.render.rows import Result, sides

COLOURS = {"base": DENSE_COLOUR, "new": SPARSE_COLOUR}


def result_plots_svg(result: Result) -> str:
    """Panels in two columns; one `<svg>` without external references.

    Raises:
        UsageError: `usage` where matplotlib is not installed.
    """
    rc_context: Any = need("matplotlib").rc_context
    figure_class: Any = need("matplotlib.figure").Figure
    canvas_class: Any = need("matplotlib.backends.backend_svg").FigureCanvasSVG
    with rc_context({"svg.hashsalt": "sparse-bench-result", "svg.fonttype": "path"}):
        figure = figure_class(figsize=(9.0, 6.4), layout="constrained")
        canvas_class(figure)
        axes = figure.subplots(2, 2)
        _distributions(axes[0][0], result)
        _ratios(axes[0][1], result)
        _batches(axes[1][0], result)
        _roofline(axes[1][1], result)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return inline(out.getvalue())


def _distributions(axes: Any, result: Result) -> None:
    """Empirical distribution of each reading's gate over its side's median: shapes, not levels."""
    for name, info, workloads in sides(result):
        values: list[float] = []
        for workload in workloads:
            mine = [
                v
                for r in result.readings
                if r.side == name and r.workload == workload.workload and r.run == 0
                if (v := r.value(workload.gate)) is not None
            ]
            values += (np.array(mine) / np.median(mine)).tolist() if mine else []
        ordered = np.sort(values)
        axes.step(
            ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered)),
            where="post", color=COLOURS[name], label=info.label,
        )  # fmt: skip
    axes.set_xlabel("seconds over their side's median", fontsize=8)
    axes.set_ylabel("share of readings", fontsize=8)
    axes.set_title("distribution of latencies", loc="left", fontsize=9)
    axes.legend(fontsize=7)


def _ratios(axes: Any, result: Result) -> None:
    axes.set_title("new over base seconds (right of 1: slower)", loc="left", fontsize=9)
    if not isinstance(result, CompareResult):
        axes.text(0.5, 0.5, "one side: no ratio", ha="center", fontsize=8)
        axes.set_axis_off()
        return
    for y, cell in enumerate(result.cells):
        axes.plot([cell.low, cell.high], [y, y], color=SPARSE_COLOUR, linewidth=3)
        axes.plot([cell.ratio], [y], "D", color=SPARSE_COLOUR)
    effect = result.rule.min_effect
    axes.axvspan(1 / (1 + effect), 1 + effect, color=DENSE_COLOUR, alpha=0.2)
    axes.axvline(1.0, color=DENSE_COLOUR, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(result.cells)), [c.workload for c in result.cells], fontsize=7)
    axes.set_ylim(len(result.cells) - 0.4, -0.6)


def _batches(axes: Any, result: Result) -> None:
    for name, info, workloads in sides(result):
        points: list[tuple[int, float]] = []
        for w in workloads:
            rate = w.figure("decode_tokens_per_second")
            if rate is not None and rate.value is not None and w.gate in ("itl", "tpot"):
                points.append((w.batch, rate.value))
        points.sort()
        if points:
            batches, rates = zip(*points, strict=True)
            axes.plot(batches, rates, "o-", color=COLOURS[name], label=info.label)
    axes.set_xlabel("batch", fontsize=8)
    axes.set_ylabel("decode, tokens/s", fontsize=8)
    axes.set_title("throughput against batch", loc="left", fontsize=9)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)


def _roofline(axes: Any, result: Result) -> None:
    """Where decode lies: tokens/s against bytes read a token, on lines of equal bandwidth.

    The full line is what this machine reads at most.
    """
    speeds: list[float] = []
    for name, info, workloads in sides(result):
        for w in workloads:
            rate = w.figure("decode_tokens_per_second")
            if w.batch != 1 or rate is None or rate.value is None or not info.weight_bytes:
                continue
            axes.plot([info.weight_bytes], [rate.value], "o", color=COLOURS[name])
            speeds.append(info.weight_bytes * rate.value)
    axes.set_title("decode: bytes a token, and the bandwidth reached", loc="left", fontsize=9)
    if not speeds:
        axes.set_axis_off()
        return
    found = [info.weight_bytes for _, info, _ in sides(result) if info.weight_bytes]
    span = np.array([min(found) / 2, max(found) * 2])
    machine = result.fingerprint if isinstance(result, RunResult) else result.new_fingerprint
    ceiling = machine.read_bytes_per_second
    lines = [(max(speeds), ":", "", "right"), (max(speeds) / 2, ":", "", "right")]
    lines += [(ceiling, "-", " plain reading", "left")] if ceiling else []
    for speed, style, words, side in lines:
        axes.plot(span, speed / span, linestyle=style, color=DENSE_COLOUR, linewidth=1)
        end = span[0] if side == "left" else span[1]  # a speed near the ceiling: names apart
        axes.annotate(
            f"{speed / 1e9:.3g} GB/s{words}", (end, speed / end), fontsize=7, ha=side, va="bottom"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes of weights read a token", fontsize=8)
    axes.set_ylabel("decode, tokens/s", fontsize=8)
