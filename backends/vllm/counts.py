"""What the mask of each linear counts to after merging, and which N:M is the tightest on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from exporter.arch.model_spec import Linear
from exporter.model import FusedModel
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.sparsity.pattern import LinearPattern


def from_headers(model: FusedModel) -> bool:
    """Whether nothing was read of the model but headers: it has no verdicts then (`--plan`)."""
    return not model.checked.patterns


def linears(model: FusedModel) -> Mapping[str, Linear]:
    """Weight name -> linear, of every prunable linear."""
    return {linear.weight: linear for linear in model.spec.linears()}


def pattern(model: FusedModel, linear: Linear) -> LinearPattern:
    """Counts and verdict of the mask that a linear has after merging.

    Those of the check are used where the mask is still that of the base; a mask that moved is
    counted, and so is every mask where only headers were read. A densified linear keeps all.
    """
    moved = model.moved_masks.get(linear.module)
    if linear.module in model.densified:
        return mask_pattern(linear.module, _full(linear))
    if moved is not None:
        return mask_pattern(linear.module, moved())
    found = model.checked.patterns.get(linear.module)
    return found or mask_pattern(linear.module, model.checked.masks.mask(linear))


def mask(model: FusedModel, linear: Linear) -> Mask:
    """The mask that `pattern` counts."""
    if linear.module in model.densified:
        return _full(linear)
    moved = model.moved_masks.get(linear.module)
    return moved() if moved is not None else model.checked.masks.mask(linear)


def _full(linear: Linear) -> Mask:
    return Mask.from_bool(np.ones((linear.out_features, linear.in_features), np.bool_))


def tightest(found: LinearPattern) -> tuple[int, int] | None:
    """N and M of the smallest N/M that holds in every group; of equal ones the smallest M.

    None where every M of 4, 8 and 16 has a full group. An all-zero linear is 1:16, since N >= 1.
    """
    fits = [(max(n, 1), m) for m, n in found.group_max.items() if n < m]
    return min(fits, key=lambda nm: (nm[0] / nm[1], nm[1]), default=None)


def obeys_2_4(found: LinearPattern) -> bool:
    """Whether no group of 4 inputs keeps more than 2."""
    return found.group_max[4] <= 2
