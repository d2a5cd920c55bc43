"""`sparse-tune prune` and `sparse-tune compact`: parse, call, print."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter.commands.terminal import TerminalListener, interruptible
from exporter.memory import peak_rss_bytes
from harness.documents import FIELD
from harness.prune.compact import compact_folder
from harness.prune.plan import Rates
from harness.prune.run import MASKS, Calibration, Pruned, prune_folder
from harness.prune.sparsity import parse_sparsity
from harness.rates.names import IMPORTANCES, UNIFORM
from harness.text import BUILTIN

DATA_HELP = (
    "UTF-8 text, JSON lines, token ids (.json, .safetensors), NAME[@CONFIG][:SPLIT] of a cached "
    'hub dataset, "builtin", or "random" ids.'
)
RATES_HELP = f"Rates of blocks: {UNIFORM}, {', '.join(IMPORTANCES)}, or a JSON file of shares."


class PruneMethod(str, Enum):
    """What `prune` scores weights by."""

    magnitude = "magnitude"
    wanda = "wanda"
    sparsegpt = "sparsegpt"
    alps = "alps"
    pruner_zero = "pruner-zero"
    wanda_sp = "wanda-sp"


class Scope(str, Enum):
    """What an unstructured share of zeros is reached in."""

    row = "row"
    tensor = "tensor"


class Rule(str, Enum):
    """How rates become a mixed N:M."""

    deviation = "deviation"
    budget = "budget"


def prune_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder with safetensors weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")],
    sparsity: Annotated[
        str, typer.Option("--sparsity", help='Share of zeros ("0.7") or N kept of M ("2:4").')
    ],
    method: Annotated[PruneMethod, typer.Option("--method", help="Method.")] = PruneMethod.wanda,
    per: Annotated[
        Scope, typer.Option("--per", help="Where a share is reached: each row, or the tensor.")
    ] = Scope.row,
    data: Annotated[str, typer.Option("--data", help=DATA_HELP)] = BUILTIN,
    field: Annotated[str, typer.Option("--field", help="Text of a JSON line or a row.")] = FIELD,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Windows of text.")] = 32,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens per window.")] = 128,
    rates: Annotated[str, typer.Option("--rates", help=RATES_HELP)] = UNIFORM,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Largest deviation of a rate.")
    ] = None,
    beta: Annotated[float, typer.Option("--beta", help="Of RMI.")] = 1.0,
    rule: Annotated[
        Rule, typer.Option("--nm-rule", help="How rates make a mixed N:M.")
    ] = Rule.deviation,
    for_2_4: Annotated[
        bool, typer.Option("--for-2-4", help="Mixed N:M that a 2:4 kernel takes (N up to 2).")
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="Print this importance's rank correlation with RMI."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the windows drawn.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Zero the linears of the decoder's blocks; masks go to OUTPUT/masks/masks.safetensors."""
    amount = parse_sparsity(sparsity, per.value)
    calibration = Calibration(data, samples, length, seed, field)
    how = Rates(rates, delta, beta, rule.value, for_2_4, tuple(compare or ()))
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage(f"prune ({method.value}, {amount})")
        done = prune_folder(
            model, output, method.value, amount, calibration,
            rates=how, force=force, progress=listener.progress,
        )  # fmt: skip
    tell(done, output)


def compact_command(
    model: Annotated[Path, typer.Argument(help="Folder that wanda-sp pruned.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")],
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Take pruned heads and channels out: a smaller model of the same function."""
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("compact")
        sizes = compact_folder(model, output, masks=masks, force=force, progress=listener.progress)
    print(
        f"{output}: {sizes.heads} heads, {sizes.kv_heads} key-value heads, "
        f"{sizes.intermediate} channels in each block"
    )


def tell(done: Pruned, output: Path) -> None:
    """Print what was reached."""
    for name, (spearman, kendall) in done.plan.correlation.items():
        print(f"rank correlation of {name} with rmi: Spearman {spearman:+.3f}, tau {kendall:+.3f}")
    if done.rates.source != UNIFORM:
        print("zeros by block: " + " ".join(f"{share:.3f}" for share in done.reached))
    print(f"{output}: {done.linears} linears, {done.sparsity:.2%} zeros; masks in {output / MASKS}")
    print(f"peak memory {peak_rss_bytes() / 1e9:.2f} GB")
