"""Commands that look at results or at the harness: history, overhead, and a server's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.decide.rule import Rule
from bench.files import write_text
from bench.history import read_history
from bench.overhead import measure_overhead
from bench.progress import Bar
from bench.served import Load, ServedResult, measure_served
from bench.verdict import Exit
from exporter.commands.terminal import interruptible

_Json = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
_MOST_PER_TOKEN = 50e-6
_TRUTH = 0.01


def history_command(
    folder: Annotated[Path, typer.Argument(help="Folder of results of `run`.")],
    min_effect: Annotated[float, typer.Option(help="Smallest move of note.")] = Rule.min_effect,
    force: Annotated[bool, typer.Option("--force", help="Take unlike machines too.")] = False,
    fail: Annotated[bool, typer.Option("--fail", help="Exit 1 where the last move is up.")] = False,
    json_out: _Json = None,
) -> None:
    """When did a figure move for good, and by how much?"""
    result = read_history(folder, Rule(min_effect=min_effect), force=force)
    table = Table("workload", "by", "since", "result", "before, ms", "after, ms", "ratio", "p")
    for c in result.changes:
        table.add_row(
            c.workload, c.metric, c.at, c.title, f"{c.before * 1e3:.3f}", f"{c.after * 1e3:.3f}",
            f"{c.ratio:.3f}", f"{c.p:.2g}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(f"{result.results} results, {len(result.changes)} changes", highlight=False)
    for name, why in result.left_out.items():
        console.print(f"note: left out: {name}: {why}", highlight=False, markup=False)
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")
    raise typer.Exit(Exit.REGRESSION if fail and result.slower else Exit.FINE)


def overhead_command(json_out: _Json = None) -> None:
    """What the harness itself costs here, and whether it finds what a mock was set to."""
    result = measure_overhead()
    table = Table("", "found", "bound or set")
    table.add_row("harness, us a token", f"{result.per_token_in_process * 1e6:.2f}", "50")
    table.add_row("harness, us a call", f"{result.per_call_in_process * 1e6:.1f}", "")
    table.add_row("pipe to the engine, us a call", f"{result.per_call_behind_pipe * 1e6:.1f}", "")
    for name in ("ttft", "tpot"):
        found, wanted = getattr(result, f"{name}_found"), getattr(result, f"{name}_set")
        table.add_row(f"{name.upper()} of a mock, ms", f"{found * 1e3:.4f}", f"{wanted * 1e3:.4f}")
    Console().print(table)
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")
    true = max(result.ttft_error, result.tpot_error) <= _TRUTH
    cheap = result.per_token_in_process < _MOST_PER_TOKEN
    raise typer.Exit(Exit.FINE if true and cheap else Exit.REGRESSION)


def serve_and_tell(load: Load, json_out: Path | None) -> None:
    """Measure a server, print its table; 3 where requests were lost.

    Raises:
        EngineUnfit: as `measure_served`.
    """
    with interruptible(), Bar(Console(stderr=True)) as bar:
        result = measure_served(load, bar.progress)
    show_served(result, load.url)
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")
    raise typer.Exit(Exit.NOT_MEASURED if result.wrong else Exit.FINE)


def show_served(result: ServedResult, where: str) -> None:
    """A server's table."""
    table = Table(
        "", "median or rate", "p90", "p95", "p99", "n", title=f"{where}, {result.loop} loop"
    )
    for f in result.figures:
        scale, name = (1e3, f"{f.metric}, ms") if f.unit == "s" else (1.0, f"{f.metric}, {f.unit}")
        value = f.why if f.value is None else f"{f.value * scale:.4g}"
        tail = [
            "n too small" if p.value is None else f"{p.value * scale:.4g}"
            for p in f.percentiles
            if p.level > 0.5
        ]
        table.add_row(name, value, *(tail or ["", "", ""]), str(f.n))
    console = Console()
    console.print(table)
    mixed_up = "" if result.foreign is None else f"{result.foreign} of another request, "
    console.print(
        f"{result.answered} of {result.sent} answered in {result.seconds:.1f} s, "
        f"{result.lost} lost, {mixed_up}{result.short} of another length; {result.client}",
        highlight=False,
    )
