"""What one iteration decides before it trains: rates of the blocks, masks, errors and sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter.model import CheckedModel
from harness.methods.context import Context
from harness.methods.errors import reconstruction_errors
from harness.methods.iterative_settings import IterativeSettings, scheduled
from harness.methods.masking import Pruning, make_masks
from harness.prune.plan import Rates, make_plan
from harness.prune.sparsity import NM, Unstructured, share_of
from harness.rates.observe import importances


@dataclass(frozen=True)
class RoundPlan:
    """Of one iteration."""

    iteration: int
    sparsity: float  # the mean that was asked for
    rates: tuple[float, ...]  # of each block
    importance: tuple[float, ...]  # of each block; empty with uniform rates
    reached: float  # share of zeros over all linears
    errors: list[float] = field(default_factory=list[float])
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "iteration": self.iteration,
            "sparsity": self.sparsity,
            "reached": self.reached,
            "rates": list(self.rates),
            "importance": list(self.importance),
            "errors": self.errors,
            "sizes": dict(self.sizes),
        }


def measure_masks(
    context: Context, merged: CheckedModel, settings: IterativeSettings, t: int, spare: Path
) -> tuple[RoundPlan, Pruning]:
    """Rates and masks of iteration `t`, measured on the merged model.

    An N:M pattern has no share to raise: it is there from the first iteration.

    Args:
        context: of the run; its sparsity is the last one.
        merged: the model with the adapter of the iteration before in it.
        settings: how.
        t: the iteration, from 1.
        spare: an empty folder for what does not fit in memory.
    """
    target = context.sparsity
    if target is None:
        raise ValueError("nothing to prune to")
    share = share_of(target)
    if isinstance(target, Unstructured):
        share = scheduled(share, t, settings.iterations, settings.schedule)
        target = replace(target, share=share)
    uniform = isinstance(target, NM) and not settings.mixed
    source = "uniform" if uniform else settings.rates

    def observe(names: Collection[str]) -> Mapping[str, list[float]]:
        found = importances(
            merged, context.calibration, names, spare, beta=settings.beta, progress=context.progress
        )
        _empty(spare)
        return {name: values.tolist() for name, values in found.items()}

    with context.record.phase("rates"):
        rates = Rates(source, settings.delta, settings.beta)
        plan = make_plan(merged.spec, target, rates, observe)
    with context.record.phase("masks"):
        done = make_masks(
            merged, plan.targets, context.pruner, context.calibration, spare, context.progress
        )
        _empty(spare)
    importance = tuple(plan.importance.get(source, ()))
    return RoundPlan(t, share, tuple(plan.rates), importance, done.sparsity), done


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def measure_errors(
    context: Context, pruned: CheckedModel, settings: IterativeSettings
) -> list[float]:
    """Reconstruction error of every block; empty where all blocks get the same size."""
    if settings.ranks == "uniform":
        return []
    with context.record.phase("ranks"):
        return reconstruction_errors(context.checked, pruned, context.calibration, context.progress)
