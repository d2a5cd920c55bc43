"""What one iteration decides before it trains: rates of the blocks, masks, errors and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.calibration.blocks import BlockStream
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from harness.methods.context import Context
from harness.methods.errors import reconstruction_errors
from harness.methods.iterative_settings import IterativeSettings, scheduled
from harness.methods.masking import block_sparsities, make_masks, share_of
from harness.prune.sparsity import NM
from harness.rates.cka import gram, linear_cka
from harness.rates.lp import layer_rates
from harness.rates.rmi import rmi_importance
from harness.text import Tokens


@dataclass(frozen=True)
class Plan:
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
    context: Context, merged: CheckedModel, settings: IterativeSettings, t: int
) -> tuple[Plan, dict[str, Mask]]:
    """Rates and masks of iteration `t`, measured on the merged model.

    An N:M pattern has no share to raise or to move: every block gets it from the first iteration.
    """
    target = context.sparsity
    if target is None:
        raise ValueError("nothing to prune to")
    share = share_of(target)
    if not isinstance(target, NM):
        share = scheduled(share, t, settings.iterations, settings.schedule)
    rates, importance = [share] * merged.spec.layers, ()
    if settings.rates == "rmi" and not isinstance(target, NM):
        with context.record.phase("rates"):
            found = importance_of(merged, context.calibration, settings.beta)
            importance = tuple(found)
            rates = layer_rates(found, share, settings.delta).tolist()
    with context.record.phase("masks"):
        wanted = block_sparsities(target, rates)
        masks = make_masks(merged, wanted, context.pruner, context.calibration, context.progress)
    return Plan(t, share, tuple(rates), importance, _zeros(masks)), masks


def importance_of(model: CheckedModel, tokens: Tokens, beta: float) -> list[float]:
    """RMI importance of every block: CKA of the blocks' inputs (LoSA eq. 4), streamed."""
    stream = BlockStream(fuse(model, []), tokens)
    grams: list[Any] = []
    for index in range(model.spec.layers):
        grams.append(gram(stream.hidden.numpy()))
        stream.load(index)
        stream.run(index, 0, len(tokens), advance=True)
        stream.drop(index)
    return rmi_importance(linear_cka(grams), beta).tolist()


def measure_errors(
    context: Context, pruned: CheckedModel, settings: IterativeSettings
) -> list[float]:
    """Reconstruction error of every block; empty where all blocks get the same size."""
    if settings.ranks == "uniform":
        return []
    with context.record.phase("ranks"):
        return reconstruction_errors(context.checked, pruned, context.calibration, context.progress)


def _zeros(masks: Mapping[str, Mask]) -> float:
    total = sum(m.out_features * m.in_features for m in masks.values())
    return 1.0 - sum(m.kept for m in masks.values()) / total
