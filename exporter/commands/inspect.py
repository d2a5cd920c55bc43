"""`sparse-export inspect MODEL`: how sparse a model is, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter.check.claims import EXPECT_HELP, parse_expected
from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.report.inspect import inspect_model
from exporter.report.inspect_html import write_inspect_html
from exporter.report.inspect_table import render_table
from exporter.store.checkpoint import Checkpoint


def inspect_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file to check against.")
    ] = None,
    expect: Annotated[
        str | None, typer.Option("--expect", help=EXPECT_HELP, metavar="PATTERN")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with a heat map.")
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Print sparsity and pattern per layer and module, and in total."""
    claim = None if expect is None else parse_expected(expect)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("inspect")
        report = inspect_model(
            Checkpoint.open(model), masks, expect=claim, progress=listener.progress
        )
    if html is not None:
        write_inspect_html(report, html)
    if json_out:
        print_json(report.model_dump(mode="json", by_alias=True))
    else:
        render_table(report, Console())
