"""Rank tests between two sides, by process, and Holm's correction over many cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from bench.decide.ratio import Blocks, pair_ratios
from bench.extras import need


def mann_whitney(base: Blocks, new: Blocks) -> float:
    """Two-sided p of Mann and Whitney's U on the medians of the processes.

    One value a process: samples of one process are no independent samples, and counting them as
    such finds differences between any two processes (pseudo-replication, Hurlbert 1984).
    """
    a, b = (np.array([np.median(block) for block in side]) for side in (base, new))
    # Exact for few values; ties (a virtual clock) take the normal approximation.
    tied = len(np.unique(np.concatenate((a, b)))) < len(a) + len(b)
    if tied and len(np.unique(np.concatenate((a, b)))) == 1:
        return 1.0
    test = cast(Any, need("scipy.stats")).mannwhitneyu
    return float(test(b, a, method="asymptotic" if tied else "exact").pvalue)


def signed_rank(base: Blocks, new: Blocks) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on the log ratios of the pairs.

    For pairs in place of Mann-Whitney, which would count the drift that pairing takes away.
    """
    logs = np.log(pair_ratios(base, new))
    if not np.any(logs):
        return 1.0
    test = cast(Any, need("scipy.stats")).wilcoxon
    exact = len(logs) <= 50 and not np.any(logs == 0)
    return float(test(logs, method="exact" if exact else "approx").pvalue)


def rank_test(base: Blocks, new: Blocks, *, paired: bool) -> float:
    """p of the test that fits: signed ranks for pairs, Mann-Whitney otherwise."""
    return signed_rank(base, new) if paired else mann_whitney(base, new)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given (Holm 1979; scipy has only the FDR's)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out = [1.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = running
    return out


def pairs_needed(cells: int, alpha: float) -> int:
    """Fewest pairs with which the best of `cells` p values can pass Holm's first step.

    The smallest two-sided p of n signed ranks is 2 / 2**n.
    """
    n = 1
    while 2.0 ** (1 - n) > alpha / cells:
        n += 1
    return n
