"""Masks of a whole model for training, by any pruner of `sparse-tune prune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exporter.contract import Progress
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from harness.prune.passes import Method, prune_pass
from harness.prune.sparsity import Sparsity
from harness.text import Tokens

PRUNERS: tuple[Method, ...] = ("wanda", "magnitude", "sparsegpt", "alps", "pruner-zero")


@dataclass(frozen=True)
class Pruning:
    """Masks of all linears, and the weights that the pruner rewrote."""

    masks: dict[str, Mask] = field(default_factory=dict[str, Mask])  # by module
    rewritten: dict[str, F32] = field(default_factory=dict[str, F32])  # by tensor, [out, in]

    def applied(self, tensor: str, module: str, weight: F32) -> F32:
        """A weight behind the pruning: rewritten, or as it was; zero outside the mask."""
        return self.rewritten.get(tensor, weight) * self.masks[module].rows()

    @property
    def sparsity(self) -> float:
        """Share of zeros over all linears."""
        total = sum(m.out_features * m.in_features for m in self.masks.values())
        return 1.0 - sum(m.kept for m in self.masks.values()) / total


def make_masks(
    model: CheckedModel,
    targets: Sequence[Sparsity],
    method: Method,
    tokens: Tokens,
    folder: Path,
    progress: Progress | None = None,
) -> Pruning:
    """Prune every linear; with `wanda` and `magnitude` masks nest as shares rise.

    Args:
        model: checked; not changed.
        targets: of each block.
        method: one of `PRUNERS`.
        tokens: calibration windows `[n, length]`.
        folder: empty, on disk, for what does not fit in memory.
        progress: told after each block.
    """
    found = Pruning()
    for linear, kept, weight in prune_pass(model, method, targets, tokens, folder, progress):
        found.masks[linear.module] = Mask.from_bool(kept)
        if weight is not None:
            found.rewritten[linear.weight] = np.array(weight, np.float32)
    order = [linear.module for linear in model.spec.linears()]
    return Pruning({module: found.masks[module] for module in order}, found.rewritten)
