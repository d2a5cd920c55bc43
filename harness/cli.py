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
from harness.methods.options import Factors, Training
from harness.methods.run import train_folder
from harness.prune.command import prune_command
from harness.text import BUILTIN

app = typer.Typer(
    name="sparse-tune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make sparse models and adapters for them: prune, train, evaluate.",
)
app.command("prune")(prune_command)
app.command("eval")(eval_command)


class TrainMethod(str, Enum):
    """What `train` makes."""

    losa = "losa"
    lora = "lora"


Model = Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
Data = Annotated[str, typer.Option("--data", help='UTF-8 text file, or "builtin".')]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per window of text.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed; equal seeds, equal output.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


@app.command("train")
def train_command(
    model: Model,
    output: Output,
    method: Annotated[TrainMethod, typer.Option("--method", help="losa: under the mask.")],
    data: Data = BUILTIN,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1)] = 40,
    rank: Annotated[int, typer.Option("--rank", min=1)] = 8,
    alpha: Annotated[
        float, typer.Option("--alpha", min=1e-6, help="Scale is alpha / rank.")
    ] = 16.0,
    length: Length = 128,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows per step.")] = 4,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Peak learning rate.")] = 1e-3,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Train an adapter on text: LoSA's inner step (masked, exact to merge) or plain LoRA."""

    def show(step: int, loss: float) -> None:
        if step == 1 or step % 5 == 0 or step == steps:
            print(f"step {step:>4} of {steps}  loss {loss:.4f}", flush=True)

    options = Training(steps=steps, batch=batch, length=length, lr=lr, seed=seed)
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage(f"train ({method.value})")
        train_folder(
            model, output, method.value, options, Factors(rank, alpha),
            report=show, data=data, masks=masks, force=force, progress=listener.progress,
        )  # fmt: skip
    print(f"{output}: {method.value} adapter of rank {rank}")


def main(argv: list[str] | None = None) -> None:
    """Run and leave with the exit codes of `sparse-export` (docs/reference/errors.md)."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(args: list[str]) -> int:
    """Run one command line and give its exit code."""
    return run_app(app, args)
