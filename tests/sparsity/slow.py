"""Slow, obvious counterparts of exporter.sparsity: bool arrays, Python loops, no packed bits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


def slow_group_counts(kept: Bools, m: int) -> list[list[int]]:
    """Kept weights per row and group; the last group takes what is left."""
    width = kept.shape[1]
    return [[sum(map(int, row[c : c + m])) for c in range(0, width, m)] for row in kept]


def slow_group_max(kept: Bools) -> dict[int, int]:
    """M -> most kept weights of any group."""
    return {m: max(max(row) for row in slow_group_counts(kept, m)) for m in (4, 8, 16)}


def slow_first_violation(kept: Bools, n: int, m: int) -> tuple[int, int] | None:
    """First (row, group) over the bound, in reading order."""
    for row, counts in enumerate(slow_group_counts(kept, m)):
        for group, count in enumerate(counts):
            if count > n:
                return row, group
    return None


def slow_verdict(kept: Bools) -> str:
    """The rules of docs/reference/patterns.md, word by word, in float64."""
    zeros = ~kept
    if zeros.mean(dtype=np.float64) < 0.01:
        return "dense"
    row_zero, column_zero = zeros.all(axis=1), zeros.all(axis=0)
    rest = zeros[~row_zero][:, ~column_zero]
    if rest.size == 0 or rest.mean(dtype=np.float64) < 0.01:
        more_rows = zeros[row_zero].sum() >= zeros[:, column_zero].sum()
        return "rows" if more_rows else "columns"
    live = kept[~row_zero]
    for m in (4, 8, 16):
        counts = slow_group_counts(live, m)
        n = max(max(row) for row in counts)
        widths = [min(m, kept.shape[1] - c) for c in range(0, kept.shape[1], m)]
        allowed = len(live) * math.fsum(min(n, w) for w in widths)
        if n < max(widths) and live.sum() >= 0.95 * allowed:
            return f"{n}:{m}"
    return "unstructured"


def prune_nm(rng: np.random.Generator, out: int, width: int, n: int, m: int) -> Bools:
    """Random mask that keeps exactly n of each m consecutive inputs (m divides width)."""
    order = rng.random((out, width // m, m)).argsort(axis=-1)
    return (order < n).reshape(out, width)
