"""Prune and train in turn: the outer loop that LoSA and SWGI share, resumable at any step.

LoSA (arXiv 2502.14816), algorithm 1; SWGI has the same loop with another adapter. Each iteration
measures rates on the merged model, prunes it a little further, measures the error of each block,
gives sizes by it, and trains on the next slice of the data with a fresh optimiser. All that an
iteration starts from lies in `work/slice-T`, so a killed run goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor

from exporter.check.model import check_model
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32
from exporter.store.folder import stage
from exporter.store.jsonio import read_json, write_json
from harness.hf import load_float32
from harness.methods.base import Adaptation, Base
from harness.methods.checkpoint import StepStore
from harness.methods.context import Context
from harness.methods.folder import write_model
from harness.methods.iterative_settings import IterativeSettings, shared_out
from harness.methods.loop import Loop
from harness.methods.masking import Pruning
from harness.methods.oneshot import note_training, open_base
from harness.methods.plan import RoundPlan, measure_errors, measure_masks

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Start:
    """What an iteration begins with: weights of the linears, and tensors of the method."""

    weights: Mapping[str, F32]  # by tensor name; already zero outside the mask
    tensors: Mapping[str, F32]  # the method's own, for `attach`
    exact: bool  # the weights need float32: they are no longer those of the model


class Iterated(Protocol):
    """A method that can be trained in iterations."""

    settings: IterativeSettings

    def sizes(self, checked: CheckedModel, errors: list[float], t: int) -> dict[str, int]:
        """Rank or parameters of each module in iteration `t`."""
        ...

    def merged(self, adaptation: Adaptation) -> dict[str, F32]:
        """Weights of the linears with the adapter in, by tensor name."""
        ...

    def start(
        self, before: Adaptation | None, pruned: Mapping[str, F32], done: Pruning,
        sizes: Mapping[str, int], t: int, seed: int,
    ) -> Start:  # fmt: skip
        """What iteration `t` begins with, after the one before it ended as `before`."""
        ...

    def attach(
        self, base: Base, sizes: Mapping[str, int], tensors: Mapping[str, F32]
    ) -> Adaptation:
        """The method on the base of an iteration."""
        ...


def train_iterated(context: Context, method: Iterated) -> tuple[Adaptation, CheckedModel]:
    """All iterations; the last adaptation and the sparse base that it belongs to."""
    rounds = method.settings.iterations
    steps = shared_out(context.training.steps, rounds)
    edges = np.cumsum([0, *shared_out(len(context.rows), rounds)])
    first = _last_prepared(context.work) if context.resume else 0
    adaptation: Adaptation | None = None
    history: list[dict[str, Any]] = []
    base = context.checked
    for t in range(max(1, first), rounds + 1):
        folder = context.work / f"slice-{t}"
        if context.main and not folder.exists():
            prepare(context, method, t, adaptation)
        context.wait()
        record = cast(dict[str, Any], read_json(folder / "config.json"))
        history = record["history"]
        context.record.done["losses"] = list(record["losses"])
        base = open_base(folder / "base")
        training = replace(context.training, steps=steps[t - 1], seed=context.training.seed + t)
        facts = {"history": history}
        loaded = Base(load_float32(folder / "base"), base, training, facts)
        adaptation = method.attach(loaded, record["sizes"], read_tensors(folder))
        rows = context.rows[edges[t - 1] : edges[t]]
        _train_slice(context, adaptation, rows, training, sum(steps[: t - 1]), folder / "step")
    if adaptation is None:
        raise ValueError("no iteration")
    context.record.done["history"] = history
    return adaptation, base


def _train_slice(
    context: Context, adaptation: Adaptation, rows: Any, training: Any, before: int, store: Path
) -> None:
    loop = Loop(adaptation, rows, training, StepStore(store))

    def report(step: int, loss: float) -> None:
        context.report(before + step, loss)

    with context.record.phase("training"):
        losses = loop.run(report, resume=context.resume)
    note_training(context, adaptation, loop, losses)


def prepare(context: Context, method: Iterated, t: int, before: Adaptation | None) -> None:
    """Write `work/slice-t`: the sparse base, its masks, sizes, and the method's tensors."""
    checked = context.checked
    linears = {li.weight: li.module for li in checked.spec.linears()}
    with stage(context.work / f"slice-{t}") as staging:
        merged_folder = staging.path / "merged"
        if before is None:
            merged = {name: checked.checkpoint.rows(name) for name in linears}
            source = checked
        else:
            merged = method.merged(before)
            merged_folder.mkdir()
            write_model(checked, merged_folder, merged, _dense(checked))
            source = check_model(Checkpoint.open(merged_folder))
        spare = staging.path / "spare"
        spare.mkdir()
        plan, done = measure_masks(context, source, method.settings, t, spare)
        pruned = {name: done.applied(name, m, merged[name]) for name, m in linears.items()}
        plan = _with_errors(context, method, plan, pruned, done.masks, staging.path, t)
        start = method.start(before, pruned, done, plan.sizes, t, context.training.seed)
        base = staging.path / "base"
        base.mkdir()
        write_model(checked, base, start.weights, done.masks, exact=start.exact)
        _write_tensors(staging.path, start.tensors)
        history = _history(context.work, t) + [plan.record()]
        losses = context.record.done.get("losses", [])
        record = {"sizes": dict(plan.sizes), "history": history, "losses": losses}
        write_json(staging.path / "config.json", record)
        _remove(merged_folder)
        _remove(spare)
        staging.publish()
    _remove(context.work / f"slice-{t - 1}")


def _with_errors(
    context: Context, method: Iterated, plan: RoundPlan, pruned: Mapping[str, F32],
    masks: Mapping[str, Mask], place: Path, t: int,
) -> RoundPlan:  # fmt: skip
    folder = place / "pruned"
    folder.mkdir()
    write_model(context.checked, folder, pruned, masks)
    errors = measure_errors(context, open_base(folder), method.settings)
    _remove(folder)
    return replace(plan, errors=errors, sizes=method.sizes(context.checked, errors, t))


def _dense(checked: CheckedModel) -> dict[str, Mask]:
    return {
        li.module: Mask.from_bool(np.ones((li.out_features, li.in_features), np.bool_))
        for li in checked.spec.linears()
    }


def _history(work: Path, t: int) -> list[dict[str, Any]]:
    before = work / f"slice-{t - 1}" / "config.json"
    return cast(dict[str, Any], read_json(before))["history"] if before.is_file() else []


def _last_prepared(work: Path) -> int:
    found = [int(p.name[6:]) for p in work.glob("slice-*") if p.name[6:].isdigit()]
    return max(found, default=0)


def _write_tensors(folder: Path, tensors: Mapping[str, F32]) -> None:
    from safetensors.numpy import save_file

    save_file(
        {n: np.ascontiguousarray(v) for n, v in tensors.items()}, folder / "start.safetensors"
    )


def read_tensors(folder: Path) -> dict[str, F32]:
    """The method's tensors that an iteration began with."""
    from safetensors.numpy import load_file

    return cast("dict[str, F32]", load_file(folder / "start.safetensors"))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
