"""`sparse-tune compare`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exporter.commands.terminal import interruptible
from exporter.store.jsonio import dump_json
from harness.compare.matrix import cells
from harness.compare.page import page
from harness.compare.run import Budget, run_cells
from harness.compare.table import lines, markdown


def compare_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")],
    methods: Annotated[
        str, typer.Option("--methods", help="Rows: oneshot, or NAME[:KEY=VALUE...], with commas.")
    ],
    held_out: Annotated[str, typer.Option("--held-out", help="Text that is scored.")],
    data: Annotated[str, typer.Option("--data", help="Text that is trained on.")],
    sparsity: Annotated[str, typer.Option("--sparsity", help='As "0.5,0.7,2:4".')] = "0.7",
    seeds: Annotated[str, typer.Option("--seeds")] = "0,1,2",
    reference: Annotated[
        str | None, typer.Option("--reference", help="Row that others differ from; else the first.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of every row.")] = 200,
    rank: Annotated[int, typer.Option("--rank", min=1, help="LoRA whose size rows have.")] = 8,
    length: Annotated[int, typer.Option("--length", min=2)] = 128,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 4,
    lr: Annotated[float, typer.Option("--lr", min=0.0)] = 1e-3,
    samples: Annotated[int, typer.Option("--samples", min=2)] = 32,
    eval_length: Annotated[int, typer.Option("--eval-length", min=2)] = 512,
    eval_tokens: Annotated[int | None, typer.Option("--eval-tokens", min=2)] = None,
) -> None:
    """A matrix of runs at equal tokens; the same command again goes on where it stopped."""
    todo = cells(methods, sparsity, seeds)
    budget = Budget(
        data=data, held_out=held_out, steps=steps, rank=rank, length=length, batch=batch, lr=lr,
        samples=samples, eval_length=eval_length, eval_tokens=eval_tokens,
    )  # fmt: skip
    with interruptible():
        results = run_cells(model, output, todo, budget, lambda text: print(text, flush=True))
    table = lines(results, reference or todo[0].row.label)
    text = markdown(table)
    shown = page(table, results, f"{model.resolve().name}: {steps} steps")
    _replace(output / "table.md", text.encode())
    _replace(output / "results.json", dump_json({"schema": 1, "cells": results}))
    rows = [line.record() for line in table]
    _replace(output / "table.json", dump_json({"schema": 1, "lines": rows}))
    _replace(output / "report.html", shown.encode())
    print(text)


def _replace(path: Path, content: bytes) -> None:
    """A run that goes on has the tables of before in its folder."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)
