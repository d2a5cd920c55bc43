"""Policy `reprune`: a new mask of the same pattern is chosen on the adapted weight."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.tiles import add_kept
from exporter.merge.base import ModuleFacts
from exporter.sparsity.mask import Bools
from exporter.sparsity.pattern import Pattern
from exporter.store.dtypes import F32


class RepruneMerge:
    """`M' . (W + D)`, M' with as many kept of each group of inputs as M, the largest scores.

    The score is `|w|`, or Wanda's `|w_j| sqrt(H_jj)` (Sun et al. 2024, eq. 1) where calibration
    gives H. Ties go to the lower index.
    """

    def __init__(self, pattern: Pattern, norms: F32 | None) -> None:
        self._pattern = pattern
        self._norms = norms  # of the input columns, float32 [in]

    def select(self, weight: F32, kept: Bools, delta: F32) -> Bools:
        """The new mask, bool `[r, in]`; of a structured mask, the same."""
        if self._pattern.kind in ("rows", "columns", "dense"):
            return kept
        scores = np.abs(weight + delta)
        if self._norms is not None:
            scores *= self._norms
        return keep_as_many(scores, kept, self._pattern.m or weight.shape[1])

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """`weight + delta` where the new mask keeps, +0.0 elsewhere."""
        return add_kept(weight, None if kept is None else self.select(weight, kept, delta), delta)


class ReprunePolicy:
    """Zeros move to where the adapted weight is smallest; their number stays, row by row."""

    name: ClassVar[str] = "reprune"
    keeps_mask: ClassVar[bool] = False
    moves_mask: ClassVar[bool] = True
    keeps_branch: ClassVar[bool] = False
    drops_outside: ClassVar[bool] = False
    solves: ClassVar[bool] = False
    cost: ClassVar[str] = "as sparse and as fast, under a new mask; loses what that one prunes"

    def bind(self, facts: ModuleFacts) -> RepruneMerge:
        """Scores by the inputs' norms where calibration measured them, else by magnitude."""
        if facts.gram is None:
            return RepruneMerge(facts.pattern, None)
        return RepruneMerge(facts.pattern, np.sqrt(np.diagonal(facts.gram())))


def keep_as_many(scores: F32, kept: Bools, group: int) -> Bools:
    """Bool `[r, in]`: of each `group` consecutive inputs the largest scores, as many as `kept` has.

    So unstructured rows (`group` = in), N:M, mixed N:M and ragged last groups stay what they are.
    """
    rows, width = scores.shape
    whole = width - width % group
    parts = [
        _largest(
            scores[:, a:b].reshape(-1, size), np.count_nonzero(kept[:, a:b].reshape(-1, size), 1)
        ).reshape(rows, b - a)
        for a, b, size in ((0, whole, group), (whole, width, width - whole))
        if b > a
    ]
    return np.concatenate(parts, axis=1)


def _largest(scores: F32, counts: NDArray[np.intp]) -> Bools:
    """The `counts[i]` largest of each row of `scores [n, g]`."""
    size = scores.shape[1]
    order = np.sort(scores, axis=1)
    place = np.clip(size - counts, 0, size - 1)[:, None]
    bound = np.take_along_axis(order, place, axis=1)
    kept = scores > bound
    missing = counts[:, None] - np.count_nonzero(kept, axis=1, keepdims=True)
    ties = scores == bound
    kept |= ties & (np.cumsum(ties, axis=1, dtype=np.int32) <= missing)
    return kept
