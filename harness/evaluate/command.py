"""`sparse-tune eval`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.store.jsonio import write_json
from harness.evaluate.protocol import Protocol
from harness.evaluate.run import evaluate_folder


def eval_command(
    model: Annotated[
        Path, typer.Argument(help="Hugging Face folder, or an artefact of sparse-export.")
    ],
    data: Annotated[str, typer.Option("--data", help='UTF-8 text file, or "builtin".')],
    length: Annotated[int, typer.Option("--length", help="Tokens of context.")] = 1024,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Tokens between windows; else the length.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=2, help="Tokens of the text to read; else all.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", help="Adapter folder; may be repeated.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer; else MODEL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file of the result.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Perplexity: exp of the mean nats of a token, each scored once. The protocol is printed."""
    protocol = Protocol(length, stride, tokens)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("evaluate")
        done = evaluate_folder(
            model, data, protocol,
            adapters=adapter or (), masks=masks, tokenizer=tokenizer, progress=listener.progress,
        )  # fmt: skip
    record = done.record()
    if output is not None:
        write_json(output, record)
    if as_json:
        print_json(record)
        return
    print(
        f"perplexity {done.score.perplexity:.4f}  ({done.score.tokens} tokens scored, "
        f"{done.score.windows} windows of {protocol.length}, stride {protocol.step}, {done.engine})"
    )
