"""A result as tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.results import AbResult, Interval, Side


def print_ab(result: AbResult, console: Console) -> None:
    """Figures of both sides, paired speedups, notes and verdict."""
    console.print(_figures(result))
    console.print(_speedups(result))
    s = result.settings
    console.print(
        f"{s.rounds} interleaved rounds, {s.prompt_tokens} prompt and {s.new_tokens} new tokens, "
        f"batch 1, {result.fingerprint.cpu}",
        highlight=False,
        markup=False,
    )
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    v = result.verdict
    console.print(f"verdict: {v.status}: {v.reason}", highlight=False, markup=False)


def figure_rows(result: AbResult) -> list[tuple[str, str, str]]:
    """(what, dense, sparse) as text; also used by the HTML report."""
    pair = (result.dense, result.sparse)

    def row(what: str, texts: list[str]) -> tuple[str, str, str]:
        return (what, texts[0], texts[1])

    return [
        row("decode, tokens/s", [_span(s.decode_tokens_per_second, 1) for s in pair]),
        row("prefill, tokens/s", [_span(s.prefill_tokens_per_second, 1) for s in pair]),
        row("TTFT, ms", [_span(s.ttft_seconds, 1, 1e3) for s in pair]),
        row("TPOT, ms", [_span(s.tpot_seconds, 2, 1e3) for s in pair]),
        row("peak RSS, MB", [f"{s.peak_rss_bytes / 1e6:,.0f}" for s in pair]),
        row("artefact, MB", [f"{s.artefact_bytes / 1e6:,.1f}" for s in pair]),
        row("ops run by the engine", [_share(s) for s in pair]),
        row("load, s", [f"{s.load_seconds:.2f}" for s in pair]),
        row("threads", [str(s.threads) for s in pair]),
        row("engine", [f"{s.engine} {s.engine_version}" for s in pair]),
        row("self-test error", [f"{s.selftest.max_rel_error:.1e}" for s in pair]),
    ]


def speedup_rows(result: AbResult) -> list[tuple[str, str]]:
    """(what, "1.62x [1.58, 1.66]") for decode, prefill and TTFT."""
    s = result.speedup
    named = (("decode", s.decode), ("prefill", s.prefill), ("TTFT", s.ttft))
    return [(name, f"{i.median:.3f}x  [{i.low:.3f}, {i.high:.3f}]") for name, i in named]


def interval_name(interval: Interval) -> str:
    """What the brackets are."""
    if interval.supported:
        return f"median and its {interval.confidence:.0%} bootstrap interval"
    return "median and range: too few rounds for an interval"


def _figures(result: AbResult) -> Table:
    table = Table(title=result.title, title_justify="left")
    table.add_column("")
    table.add_column(f"dense: {result.dense.label}", justify="right")
    table.add_column(f"sparse: {result.sparse.label}", justify="right")
    for cells in figure_rows(result):
        table.add_row(*cells)
    return table


def _speedups(result: AbResult) -> Table:
    table = Table(title="speedup of sparse over dense, paired by round", title_justify="left")
    table.add_column("")
    table.add_column(interval_name(result.speedup.decode), justify="right")
    for cells in speedup_rows(result):
        table.add_row(*cells)
    return table


def _span(interval: Interval, digits: int, scale: float = 1.0) -> str:
    low, mid, high = (v * scale for v in (interval.low, interval.median, interval.high))
    return f"{mid:,.{digits}f}  [{low:,.{digits}f}, {high:,.{digits}f}]"


def _share(side: Side) -> str:
    return "unknown" if side.ops_share is None else f"{side.ops_share:.1%}"
