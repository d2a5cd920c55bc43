"""From a recipe to a trained adaptation, and its files. Torch is loaded here, not before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from exporter.contract import Progress
from exporter.errors import UsageError
from exporter.model import CheckedModel
from exporter.store.folder import Staging
from harness.methods.base import Adaptation, Base
from harness.methods.context import Context, Record
from harness.methods.iterative import train_iterated
from harness.methods.loop import reproducible
from harness.methods.oneshot import train_once
from harness.methods.options import Report
from harness.methods.recipe import BASE, Recipe
from harness.methods.registry import METHODS, TrainMethod
from harness.methods.settings import parse_settings
from harness.methods.world import sharded, wait
from harness.prune.passes import Method
from harness.text import Tokens


def execute(
    checked: CheckedModel,
    rows: Tokens,
    calibration: Tokens,
    recipe: Recipe,
    resolved: dict[str, Any],
    work: Path,
    staging: Staging | None,
    *,
    main: bool,
    resume: bool,
    report: Report,
    progress: Progress | None,
) -> Record:
    """Train by `recipe`; with `staging` write adapter and base into it.

    Raises:
        VerificationFailed: `training-failed`.
        UsageError: `usage` for settings that the model or the steps cannot have, and for FSDP with
            a method that cannot have it.
    """
    _require_whole_or_cut(recipe.method)
    record = Record()
    context = Context(
        checked=checked, rows=rows, calibration=calibration, training=recipe.training,
        sparsity=recipe.sparsity, pruner=cast(Method, recipe.pruner), work=work, resume=resume,
        report=report if main else _quiet, progress=progress, main=main, wait=wait, record=record,
    )  # fmt: skip
    with reproducible(recipe.training.seed):
        adaptation, base = _train(context, recipe)
    if staging is not None:
        with record.phase("writing"):
            _write(adaptation, base, checked, staging.path, whole=METHODS[recipe.method].whole)
    return record


def _require_whole_or_cut(method: TrainMethod) -> None:
    """Refuse FSDP for methods that change, or look at, the weights that it would cut."""
    if sharded() and not METHODS[method].shards:
        able = ", ".join(name.value for name, entry in METHODS.items() if entry.shards)
        raise UsageError(
            "usage", f"FSDP with --method {method.value}",
            expected=f"a method that trains beside a frozen base: {able}",
            hint="Launch without --use_fsdp: each process then holds the whole model.",
        )  # fmt: skip


def _quiet(_step: int, _loss: float) -> None:
    """What a process reports that does not write."""


def _train(context: Context, recipe: Recipe) -> tuple[Adaptation, CheckedModel]:
    entry = METHODS[recipe.method]
    kind, attach = entry.load()
    settings = parse_settings(kind, recipe.settings, recipe.method.value)
    if entry.kind == "rounds":
        rounds = attach(settings, recipe.sparsity is not None)
        if recipe.sparsity is not None:
            return train_iterated(context, rounds)
        sizes = rounds.sizes(context.checked, [], 1)
        return train_once(context, lambda base: rounds.attach(base, sizes, {}))

    def once(base: Base) -> Adaptation:
        return (
            attach(base, settings, context.rows) if entry.kind == "data" else attach(base, settings)
        )

    return train_once(context, once)


def _write(
    adaptation: Adaptation, base: CheckedModel, given: CheckedModel, out: Path, *, whole: bool
) -> None:
    adaptation.write(out)
    root = base.checkpoint.root
    if not whole and root != given.checkpoint.root:
        shutil.copytree(root, out / BASE)
