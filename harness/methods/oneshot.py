"""Training on one mask: prune once if asked, attach a method, train, hand over the adaptation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from exporter.check.model import check_model
from exporter.model import CheckedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.folder import stage
from harness.hf import load_float32
from harness.methods.base import Adaptation, Base
from harness.methods.checkpoint import StepStore
from harness.methods.context import Context
from harness.methods.folder import write_model
from harness.methods.loop import Loop
from harness.methods.masking import make_masks
from harness.prune.run import MASKS

Attach = Callable[[Base], Adaptation]


def open_base(folder: Path) -> CheckedModel:
    """A sparse base that `write_model` wrote, with its masks."""
    return check_model(Checkpoint.open(folder), masks=folder / MASKS)


def prune_base(context: Context) -> CheckedModel:
    """The base of a method that prunes once: the model itself, or a pruned copy in `work/base`."""
    if context.sparsity is None:
        return context.checked
    folder = context.work / "base"
    if context.main and not folder.exists():
        checked = context.checked
        with stage(folder) as staging:
            spare = staging.path / "spare"
            spare.mkdir()
            with context.record.phase("masks"):
                done = make_masks(
                    checked, [context.sparsity] * checked.spec.layers, context.pruner,
                    context.calibration, spare, context.progress,
                )  # fmt: skip
            shutil.rmtree(spare)
            replaced = {
                li.weight: done.applied(li.weight, li.module, checked.checkpoint.rows(li.weight))
                for li in checked.spec.linears()
            }
            exact = bool(done.rewritten)
            write_model(checked, staging.path, replaced, done.masks, exact=exact)
            staging.publish()
    context.wait()
    return open_base(folder)


def train_once(context: Context, attach: Attach) -> tuple[Adaptation, CheckedModel]:
    """Prune, attach and train; the adaptation and the base that it belongs to."""
    base = prune_base(context)
    adaptation = attach(Base(load_float32(base.checkpoint.root), base, context.training))
    store = StepStore(context.work / "step")
    loop = Loop(adaptation, context.rows, context.training, store)
    with context.record.phase("training"):
        losses = loop.run(context.report, resume=context.resume)
    note_training(context, adaptation, loop, losses)
    return adaptation, base


def note_training(
    context: Context, adaptation: Adaptation, loop: Loop, losses: list[float]
) -> None:
    """Losses, trained parameters and the optimiser's bytes go into the record."""
    record = context.record
    record.done.setdefault("losses", []).extend(losses)
    record.trainable = sum(p.numel() for p in adaptation.trained.values())
    held = sum(
        value.numel() * value.element_size()
        for slots in loop.optimiser.state.values()
        for value in slots.values()
        if hasattr(value, "numel")
    )
    record.optimiser_bytes = max(record.optimiser_bytes, held)
    record.done.update(adaptation.measured())
