"""Commands of sparse-bench on exporting itself: memory, merging, and beside optimum-onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.files import write_text
from bench.progress import Bar
from bench.verdict import Exit
from exporter.commands.terminal import interruptible

_Models = Annotated[list[Path], typer.Argument(help="Model folders, smallest first.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
_Target = Annotated[str, typer.Option("--target", help="As for sparse-export.")]


def memory_command(
    models: _Models,
    target: _Target = "onnxruntime",
    repeats: Annotated[int, typer.Option(min=1, help="Exports of each model.")] = 1,
    json_out: _Json = None,
) -> None:
    """Peak memory of lowering (no verification) over models of growing size."""
    from bench.memory import measure_memory, memory_table

    with interruptible(), Bar(Console(stderr=True)) as bar:
        result = measure_memory(models, target, repeats, bar.progress)
    Console().print(memory_table(result))
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")
    missed = result.within_growth is False or not result.within_bound
    raise typer.Exit(Exit.REGRESSION if missed else Exit.FINE)


def optimum_command(
    model: Annotated[Path, typer.Argument(help="A dense or sparse Hugging Face folder.")],
    target: _Target = "onnxruntime",
    rounds: Annotated[int, typer.Option(min=1, help="Exports by each tool, each way.")] = 3,
    scratch: Annotated[
        Path | None, typer.Option(help="Where outputs are written and deleted [beside MODEL].")
    ] = None,
    json_out: _Json = None,
) -> None:
    """Time and memory of an export beside optimum-onnx 0.1.0, installed if need be."""
    from bench.peers import beside_optimum, install, peer_table

    with interruptible(), Bar(Console(stderr=True)) as bar:
        install(bar.progress)
        result = beside_optimum(model, target, rounds, scratch, bar.progress)
    Console().print(peer_table(result))
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")
    raise typer.Exit(Exit.FINE if result.reached else Exit.REGRESSION)


def merge_command(
    model: Annotated[Path, typer.Argument(help="A dense or sparse Hugging Face folder.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the random LoRA.")] = 16,
    policy: Annotated[str, typer.Option("--on-merge", help="As for sparse-export.")] = "mask",
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each way.")] = 3,
    json_out: _Json = None,
) -> None:
    """Cost of merging a LoRA: beside a copy of the files, an export without it, and peft."""
    from bench.merging.cost import merge_cost, merge_table

    with interruptible(), Bar(Console(stderr=True)) as bar:
        result = merge_cost(model, rank, policy, rounds, bar.progress)
    Console().print(merge_table(result))
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")
    raise typer.Exit(Exit.FINE if result.reached else Exit.REGRESSION)
