"""Magnitude pruning: the score of a weight is its absolute value (Han et al. 2015, section 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from harness.prune.select import keep
from harness.prune.sparsity import Sparsity


def magnitude_masks(model: CheckedModel, sparsity: Sparsity) -> Iterator[tuple[str, Mask]]:
    """`(module, mask)` of every linear in the spec's order, one in memory at a time."""
    for linear in model.spec.linears():
        scores = model.checkpoint.rows(linear.weight)
        np.abs(scores, out=scores)
        yield linear.module, Mask.from_bool(keep(scores, sparsity))
