"""`sparse-tune train`: parse, call, print."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from exporter.commands.terminal import TerminalListener, interruptible
from exporter.errors import UsageError
from harness.documents import FIELD
from harness.methods.masking import PRUNERS
from harness.methods.options import Training
from harness.methods.recipe import BASE, Recipe
from harness.methods.registry import METHODS, TrainMethod
from harness.methods.run import train_folder
from harness.prune.run import Calibration
from harness.prune.sparsity import parse_sparsity
from harness.text import BUILTIN

DATA_HELP = 'UTF-8 text, JSON lines, NAME[@CONFIG][:SPLIT] of a cached hub dataset, or "builtin".'


def train_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")],
    method: Annotated[TrainMethod, typer.Option("--method", help="What is trained.")],
    sparsity: Annotated[
        str | None,
        typer.Option("--sparsity", help='Prune to it ("0.7", "2:4"); else MODEL is as it is.'),
    ] = None,
    data: Annotated[str, typer.Option("--data", help=DATA_HELP)] = BUILTIN,
    field: Annotated[str, typer.Option("--field", help="Text of a JSON line or a row.")] = FIELD,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    pruner: Annotated[
        str, typer.Option("--pruner", help="Method of `prune`, but wanda-sp.")
    ] = "wanda",
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="Text for masks and rates; else of --data."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Windows of it.")] = 32,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the method; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1)] = 40,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="As --set rank=.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=1e-6, help="As --set alpha=.")
    ] = None,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens per window.")] = 128,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows per step.")] = 4,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Parts that a batch is run in.")
    ] = 1,
    precision: Annotated[str, typer.Option("--precision", help="no or bf16.")] = "no",
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds, equal output.")] = 0,
    save_every: Annotated[
        int, typer.Option("--save-every", min=0, help="Steps between checkpoints; 0: none.")
    ] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run of OUTPUT was.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Train on text; OUTPUT is what sparse-export takes, with the sparse base in OUTPUT/base."""
    if precision not in ("no", "bf16") or pruner not in PRUNERS:
        raise UsageError(
            "usage", f"--precision {precision} --pruner {pruner}",
            expected=f"no or bf16; {', '.join(PRUNERS)}",
        )  # fmt: skip

    def show(step: int, loss: float) -> None:
        if step == 1 or step % 5 == 0 or step == steps:
            print(f"step {step:>4} of {steps}  loss {loss:.4f}", flush=True)

    training = Training(
        steps=steps, batch=batch, length=length, lr=lr, seed=seed, accumulate=accumulate,
        precision="bf16" if precision == "bf16" else "no", save_every=save_every,
    )  # fmt: skip
    recipe = Recipe(
        method=method, training=training, data=data, field=field, masks=masks, pruner=pruner,
        settings=(*(options or ()), *_shortcuts(method, rank, alpha)),
        sparsity=None if sparsity is None else parse_sparsity(sparsity),
        calibration=calibration and Calibration(calibration, samples, length, seed, field) or None,
    )  # fmt: skip
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage(f"train ({method.value})")
        done = train_folder(
            model, output, recipe,
            report=show, force=force, resume=resume, progress=listener.progress,
        )  # fmt: skip
    print(f"{output}: {method.value}, {done['trainable']} parameters; {_next(output, model)}")


def _shortcuts(method: TrainMethod, rank: int | None, alpha: float | None) -> list[str]:
    given = {"rank": rank, "alpha": alpha}
    wanted = {key: value for key, value in given.items() if value is not None}
    if not wanted:
        return []
    settings: Any = METHODS[method].load()[0]
    known = {f.name for f in fields(settings)}
    return [f"{key}={value}" for key, value in wanted.items() if key in known]


def _next(output: Path, model: Path) -> str:
    """The command that takes it from here."""
    if (output / "config.json").is_file() or (output / BASE).is_dir():
        return f"next: sparse-export {output} --target NAME"
    return f"next: sparse-export {model} --adapter {output} --target NAME"
