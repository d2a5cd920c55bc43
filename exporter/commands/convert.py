"""`sparse-export convert ADAPTER --model MODEL --to FORMAT -o OUT`: another exact form."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.convert.run import CONVERSIONS, ConvertRequest, convert


def convert_command(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The base it was trained on.")],
    to: Annotated[str, typer.Option("--to", help=f"Format: {', '.join(sorted(CONVERSIONS))}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json_out: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Write an adapter in another format that holds exactly the same delta."""
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("convert")
        done = convert(ConvertRequest(adapter, model, to, output, force), listener.progress)
    if json_out:
        print_json(asdict(done))
        return
    same = (
        f"to {done.largest_error:.1g} of the largest element" if done.largest_error else "exactly"
    )
    Console().print(
        f"{done.modules} modules of {done.family} as {done.to}, the same delta {same}; "
        f"published {output}",
        markup=False,
    )
