"""`sparse-tune`: prune a model folder, train an adapter on it. Parse, call, print; no logic."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter.commands.terminal import TerminalListener, interruptible, run_app
from harness.evaluate.command import eval_command
from harness.methods.command import train_command
from harness.prune.run import MASKS, Calibration, prune_folder
from harness.prune.sparsity import parse_sparsity
from harness.text import BUILTIN

app = typer.Typer(
    name="sparse-tune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make sparse models and adapters for them: prune, train, evaluate.",
)
app.command("eval")(eval_command)
app.command("train")(train_command)


class PruneMethod(str, Enum):
    """What `prune` scores weights by."""

    magnitude = "magnitude"
    wanda = "wanda"


class Scope(str, Enum):
    """What an unstructured share of zeros is reached in."""

    row = "row"
    tensor = "tensor"


Model = Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
Data = Annotated[str, typer.Option("--data", help='UTF-8 text file, or "builtin".')]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per window of text.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed; equal seeds, equal output.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


@app.command("prune")
def prune_command(
    model: Model,
    output: Output,
    sparsity: Annotated[
        str, typer.Option("--sparsity", help='Share of zeros ("0.7") or N kept of M ("2:4").')
    ],
    method: Annotated[PruneMethod, typer.Option("--method", help="Score.")] = PruneMethod.wanda,
    per: Annotated[
        Scope, typer.Option("--per", help="Where a share is reached: each row, or the tensor.")
    ] = Scope.row,
    data: Data = BUILTIN,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Windows of text.")] = 32,
    length: Length = 128,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Zero the linears of the decoder's blocks; masks go to OUTPUT/masks/masks.safetensors."""
    amount = parse_sparsity(sparsity, per.value)
    calibration = Calibration(data, samples, length, seed)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage(f"prune ({method.value}, {amount})")
        done = prune_folder(
            model, output, method.value, amount, calibration,
            force=force, progress=listener.progress,
        )  # fmt: skip
    print(f"{output}: {done.linears} linears, {done.sparsity:.2%} zeros; masks in {output / MASKS}")


def main(argv: list[str] | None = None) -> None:
    """Run and leave with the exit codes of `sparse-export` (docs/reference/errors.md)."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(args: list[str]) -> int:
    """Run one command line and give its exit code."""
    return run_app(app, args)
