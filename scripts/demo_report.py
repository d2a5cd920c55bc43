"""The demo's page (self-contained HTML) and its closing table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.render.html import ab_section, page, speed_plot_svg, table
from bench.results import AbResult, Interval
from exporter.report.export import ExportReport
from exporter.report.heatmap import heatmap_svg
from exporter.report.inspect import InspectReport

_STYLE = """
td { white-space: nowrap }
pre { background: #f4f4f4; padding: .7rem; overflow: auto; max-height: 22rem; font-size: 13px }
.scroll { overflow-x: auto }
"""


@dataclass(frozen=True)
class ExportRow:
    """One published folder and its report."""

    folder: str
    report: ExportReport

    def cells(self) -> tuple[str, ...]:
        """As in `HEAD`."""
        numbers: dict[str, Any] = self.report.verification.get("numbers") or {}
        prompts = numbers.get("prompts", ())
        equal = f"{sum(p['equal'] for p in prompts)} of {sum(p['compared'] for p in prompts)}"
        share = numbers.get("ops_share")
        return (
            self.folder,
            f"{self.report.artefact.sparsity_after:.2%}",
            f"{self.report.artefact.total_bytes / 1e6:.0f} MB",
            str(self.report.verification.get("engine", "")),
            equal,
            f"{numbers.get('prefill', {}).get('max_rel', '')}",
            f"{numbers.get('decode', {}).get('max_rel', '')}",
            f"{numbers.get('allowed_rel', '')}",
            "unknown" if share is None else f"{share:.0%}",
        )


HEAD = (
    "artefact",
    "zeros",
    "size",
    "verified by",
    "greedy tokens equal",
    "max rel. error, prefill",
    "decode",
    "allowed",
    "ops by the engine",
)


@dataclass(frozen=True)
class Refusal:
    """What the terminal showed where a plain LoRA was refused."""

    lines: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Refusal:
        """From the command's output."""
        return cls(tuple(text.rstrip().splitlines()))

    def short(self, head: int = 10, tail: int = 12) -> list[str]:
        """Beginning and end: the table has one row a linear."""
        if len(self.lines) <= head + tail:
            return list(self.lines)
        left_out = len(self.lines) - head - tail
        note = f"  ... {left_out} more lines: refusal.txt, and in the page ..."
        return [*self.lines[:head], note, *self.lines[-tail:]]


def _interval(value: Interval, unit: str = "") -> str:
    return f"{value.median:.2f}{unit} [{value.low:.2f}, {value.high:.2f}]"


def speed_rows(results: Sequence[AbResult]) -> list[tuple[str, ...]]:
    """Per engine: tokens/s of both sides and the ratios with their intervals."""
    return [
        (
            result.sparse.target,
            f"{result.dense.decode_tokens_per_second.median:.1f}",
            f"{result.sparse.decode_tokens_per_second.median:.1f}",
            _interval(result.speedup.decode, "x"),
            f"{result.dense.prefill_tokens_per_second.median:.0f}",
            f"{result.sparse.prefill_tokens_per_second.median:.0f}",
            _interval(result.speedup.prefill, "x"),
        )
        for result in results
    ]


SPEED_HEAD = (
    "engine",
    "decode tokens/s, dense",
    "sparse",
    "speedup [interval]",
    "prefill tokens/s, dense",
    "sparse",
    "speedup [interval]",
)


def print_summary(
    console: Console,
    exports: Sequence[ExportRow],
    results: Sequence[AbResult],
    why_not: str,
    seconds: Mapping[str, float],
) -> None:
    """What came out, as tables."""
    for title, head, rows in (
        ("Published and verified", HEAD, [row.cells() for row in exports]),
        ("Sparse against dense, batch 1", SPEED_HEAD, speed_rows(results)),
        ("Seconds", ("stage", "s"), [(name, f"{value:.1f}") for name, value in _times(seconds)]),
    ):
        shown = Table(*head, title=title, title_justify="left")
        for row in rows:
            shown.add_row(*row)
        console.print()
        console.print(shown)
    if why_not:
        console.print(why_not, markup=False)
    for remark in _remarks(exports):
        console.print(remark, markup=False)


def _times(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return [*seconds.items(), ("all", sum(seconds.values()))]


def _remarks(exports: Sequence[ExportRow]) -> list[str]:
    """Limits of the engines and warnings of the targets, each once."""
    found: dict[str, None] = {}
    for row in exports:
        if row.report.target.licence:
            found[f"{row.report.target.engine}: {row.report.target.licence}"] = None
        for item in row.report.diagnostics:
            if item.level == "warning":
                found[f"{row.report.target.name}: {item.message}"] = None
    return list(found)


def write_page(
    path: Path,
    inspected: InspectReport,
    exports: Sequence[ExportRow],
    refusal: Refusal,
    results: Sequence[AbResult],
    why_not: str,
    commands: Sequence[str],
    seconds: Mapping[str, float],
) -> None:
    """Write the page; everything it shows is inside."""
    times = [(name, f"{value:.1f}") for name, value in _times(seconds)]
    notes = [n for n in (why_not, *_remarks(exports)) if n]
    sections = (
        "<h1>A sparse model and its adapter, exported and verified</h1>",
        "<p>SmolLM2-135M-Instruct, 70 % of each linear pruned by Wanda, an adapter trained under"
        " the mask and fused without losing a zero. Dense twin: the same model, not pruned.</p>",
        "".join(f"<p><b>{escape(note)}</b></p>" for note in notes),
        "<h2>Speed</h2>",
        speed_plot_svg(list(results)),
        table([SPEED_HEAD, *speed_rows(results)]),
        "<h2>What was published</h2>",
        "<p>Errors are against a float32 reference of the fused model, over the logits.</p>",
        f'<div class="scroll">{table([HEAD, *(row.cells() for row in exports)])}</div>',
        f"<h2>Where the zeros are</h2><p>{_totals(inspected)}</p>",
        f'<div class="scroll">{heatmap_svg(inspected)}</div>',
        "<h2>A plain LoRA is refused</h2>",
        "<p>Its delta has weight where the base is pruned. Exit code 2, nothing published:</p>",
        f"<pre>{escape(chr(10).join(refusal.lines))}</pre>",
        "<h2>Measurements</h2>",
        *(ab_section(result) for result in results),
        "<h2>Commands and seconds</h2>",
        f"<pre>{escape(chr(10).join(commands))}</pre>",
        table([("stage", "s"), *times]),
    )
    path.write_text(page("sparse-export demo", sections, _STYLE), encoding="utf-8")


def _totals(inspected: InspectReport) -> str:
    totals = inspected.totals
    return escape(
        f"{totals.linears} linears, {totals.weights:,} weights, {totals.sparsity:.2%} zeros, "
        f"{totals.pattern}; masks: {inspected.mask_origin}"
    )
