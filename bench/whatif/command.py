"""The command `what-if`: measure, estimate, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from backends.packed.kernels.library import library
from backends.packed.values import ValueType
from bench.files import write_text
from bench.fingerprint import fingerprint
from bench.progress import Bar
from bench.whatif.ceilings import Ceilings, measure_ceilings
from bench.whatif.estimate import WhatIf, estimates
from bench.whatif.reads import PATTERNS, Step, read_step
from exporter.commands.terminal import interruptible
from exporter.contract import Progress

VALUES = [ValueType.BF16, ValueType.INT8, ValueType.INT4]


def what_if_command(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder; config.json is enough.")],
    values: Annotated[
        list[ValueType] | None, typer.Option(help="Stored as; repeated [bf16, int8, int4].")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Sequences a step.")] = 1,
    context: Annotated[int, typer.Option(min=0, help="Positions before the token.")] = 128,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the kernels.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of each kernel.")] = 7,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Before any pruning: what could each sparsity bring here, at most and by our kernels?"""
    step = read_step(model)
    if threads is not None:
        library().threads = threads
    with interruptible(), Bar(Console(stderr=True)) as bar:
        result = what_if(
            model.resolve().name, step, values or VALUES, batch, context, rounds, bar.progress
        )
    print_what_if(result, Console())
    if json_out is not None:
        write_text(json_out, result.model_dump_json(indent=2) + "\n")


def what_if(
    title: str, step: Step, values: list[ValueType], batch: int, context: int, rounds: int,
    tell: Progress,
) -> WhatIf:  # fmt: skip
    """Measure this machine and estimate one model.

    Raises:
        EngineUnfit: as `measure_ceilings`.
    """
    machine = fingerprint()
    values = list(dict.fromkeys(values))
    ceilings = measure_ceilings(step.largest, values, batch, rounds, tell)
    found = estimates(step, ceilings, values, context)
    notes = [
        "Attention's arithmetic, norms and sampling are not in it; accuracy is not judged.",
        *_cache_note([e.bytes for e in found], ceilings),
    ]
    return WhatIf(
        title=title,
        batch=batch,
        context=context,
        linear_weights=step.weights,
        dense_bytes=step.dense,
        ceilings=ceilings,
        estimates=found,
        notes=notes,
        fingerprint=machine,
    )


def _cache_note(sizes: list[float], ceilings: Ceilings) -> list[str]:
    if min(sizes) > 2 * ceilings.l3_bytes:
        return []
    size = ceilings.l3_bytes / 2**20
    return [f"Weights that stay in the last-level cache ({size:.0f} MiB) can be faster than this."]


def print_what_if(result: WhatIf, console: Console) -> None:
    """The ceilings, then a row for each way to prune and store."""
    c = result.ceilings
    rates = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in c.operations_per_second.items())
    console.print(
        f"{result.title}: {c.isa}, {c.threads} threads, reads {c.read_bytes_per_second / 1e9:.1f} "
        f"GB/s, multiplies in cache at {rates} Gop/s",
        highlight=False, markup=False,
    )  # fmt: skip
    table = Table("stored", "pruned", "MB a step", "at most, tok/s", "bound by", "expected, tok/s",
                  "over own dense", "over dense bf16")  # fmt: skip
    for e in result.estimates:
        table.add_row(
            e.values, e.pattern, f"{e.bytes / 1e6:.1f}", f"{e.bound_tokens_per_second:.1f}",
            e.bound_by, f"{e.expected_tokens_per_second:.1f}", f"{e.against_own_dense:.2f}",
            f"{e.against_dense_bf16:.2f}", end_section=e.pattern == PATTERNS[-1],
        )  # fmt: skip
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
