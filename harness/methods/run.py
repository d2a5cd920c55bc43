"""Train a method on a model folder and publish what it gives, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.check.model import check_model
from exporter.contract import Progress
from exporter.errors import UsageError
from exporter.memory import peak_rss_bytes
from exporter.model import CheckedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import Staging, stage
from exporter.store.jsonio import read_json, write_json
from harness.forms import require_torch_linears
from harness.hf import load_tokenizer
from harness.methods.data import Data, load_windows
from harness.methods.options import Report
from harness.methods.recipe import COST, RECORD, Recipe
from harness.methods.registry import METHODS
from harness.methods.settings import parse_settings
from harness.text import draw


def train_folder(
    model: Path,
    out: Path,
    recipe: Recipe,
    *,
    report: Report,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and write `out`; gives its record, that of `out/train.json`.

    `out` is the adapter in its family's format, or for `full` and `lisa` the whole model. Where
    the recipe prunes, `out/base` is the sparse base with its masks. Checkpoints lie in
    `out.work` beside it until the run is done.

    Raises:
        InputRefused: what `check_model` refuses; `data-invalid`, `input-missing`.
        UsageError: `usage`, `output-exists`, `output-inside-input`.
        VerificationFailed: `training-failed`; the last checkpoint stays in `out.work`.
    """
    checkpoint = Checkpoint.open(model)
    try:
        checked = check_model(checkpoint, masks=recipe.masks, progress=progress)
        require_torch_linears(checked, "training")
        longest = checked.spec.max_positions
        tokenizer = load_tokenizer(model)
        data = load_windows(tokenizer, recipe.data, recipe.training.length, recipe.field, longest)
        calibration = _calibration(recipe, tokenizer, data, longest)
        resolved = _resolved(recipe, checked, data)
        with _places(model, out, resolved, force=force, resume=resume) as (work, staging, main):
            from harness.methods.execute import execute

            done = execute(
                checked, data.rows, calibration, recipe, resolved, work, staging,
                main=main, resume=resume, report=report, progress=progress,
            )  # fmt: skip
            if staging is not None:
                _finish(staging.path, resolved, done, work)
                staging.publish()
        return {**resolved, **done.done, "trainable": done.trainable}
    finally:
        checkpoint.close()


def _calibration(recipe: Recipe, tokenizer: Any, data: Data, longest: int) -> Any:
    wanted = recipe.calibration
    if wanted is None:
        return draw(data.rows, 32, recipe.training.seed)
    rows = load_windows(tokenizer, wanted.source, wanted.length, recipe.field, longest).rows
    return draw(rows, wanted.samples, wanted.seed)


def _resolved(recipe: Recipe, checked: CheckedModel, data: Data) -> dict[str, Any]:
    """The whole configuration, with every default, for the record and to compare on resuming."""
    settings, _ = METHODS[recipe.method].load()
    chosen = parse_settings(settings, recipe.settings, recipe.method.value)
    calibration = recipe.calibration
    return {
        "schema": 1,
        "method": recipe.method.value,
        "settings": asdict(chosen),
        "training": asdict(recipe.training),
        "seed": recipe.training.seed,
        "sparsity": None if recipe.sparsity is None else str(recipe.sparsity),
        "pruner": None if recipe.sparsity is None else recipe.pruner,
        "calibration": None
        if calibration is None
        else {**asdict(calibration), "source": Path(calibration.source).name},
        "data": {"source": data.source, "sha256": data.sha256, "tokens": data.tokens},
        "model": checked.checkpoint.root.resolve().name,
        "model_sha256": checked.checkpoint.identity(),
        "masks": checked.masks.origin,
    }


@contextmanager
def _places(
    model: Path, out: Path, resolved: dict[str, Any], *, force: bool, resume: bool
) -> Generator[tuple[Path, Staging | None, bool]]:
    """The folder of checkpoints and, in the process that writes, the output being built."""
    from harness.methods.world import is_main, wait

    work = out.with_name(out.name + ".work")
    if not is_main():
        wait()
        yield work, None, False
        return
    with stage(out, inputs=[model], force=force) as staging:
        _open_work(work, resolved, resume=resume, force=force)
        wait()
        try:
            yield work, staging, True
        finally:
            if staging.published or not _worth_keeping(work):
                shutil.rmtree(work, ignore_errors=True)


def _open_work(work: Path, resolved: dict[str, Any], *, resume: bool, force: bool) -> None:
    recipe = work / "recipe.json"
    if resume and not recipe.is_file():
        raise UsageError(
            "usage", "--resume, but no checkpoint", expected="the folder of a run", file=work.name
        )
    if recipe.is_file() and not resume:
        if not force:
            raise UsageError(
                "output-exists",
                "an unfinished run of this output",
                file=work.name,
                hint="--resume to go on with it, --force to begin anew.",
            )
        shutil.rmtree(work)
    if not resume:
        work.mkdir(exist_ok=True)
        write_json(recipe, resolved)
    elif read_json(recipe) != resolved:
        raise UsageError(
            "usage",
            "--resume with another configuration than the run began with",
            expected="the same model, data, options and seed",
            file=work.name,
        )


def _worth_keeping(work: Path) -> bool:
    """Whether a step was saved: what was only prepared is soon made again."""
    return any(work.glob("step/config.json")) or any(work.glob("slice-*/step/config.json"))


def _finish(out: Path, resolved: dict[str, Any], done: Any, work: Path) -> None:
    from harness.methods.world import processes, sharded

    write_json(out / RECORD, {**resolved, **done.done, "trainable": done.trainable})
    steps = max(1, resolved["training"]["steps"])
    write_json(
        out / COST,
        {
            "schema": 1,
            "seconds": done.seconds,
            "seconds_per_step": done.seconds.get("training", 0.0) / steps,
            "trainable": done.trainable,
            "optimiser_bytes": done.optimiser_bytes,
            "processes": processes(),
            "fsdp": sharded(),
            "peak_rss_bytes": peak_rss_bytes(),
        },
    )
