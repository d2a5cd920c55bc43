"""Sizes from errors: how many ranks, or pooling parameters, each block gets.

LoSA (arXiv 2502.14816) eq. 7, `lib/prune.py allocate_ranks`: the block whose output is
reconstructed worst gets most. The public code misses its budget where bounds bite; `allocate`
meets it, `allocate_literal` is that code's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from exporter.errors import UsageError


def allocate(errors: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole ranks between `least` and `most`, in proportion to `errors`, of sum `total` exactly.

    One factor for all errors is found by bisection, the shares are floored, and what is left goes
    to the largest fractions (ties: the larger error, then the lower index).

    Raises:
        UsageError: `usage` where no such ranks exist.
    """
    count = len(errors)
    if not count * least <= total <= count * most:
        raise UsageError(
            "usage",
            f"{total} ranks for {count} blocks",
            expected=f"{count * least} to {count * most}, with bounds {least} and {most}",
        )
    shares = _shares(errors, total, least, most)
    ranks = [max(least, math.floor(share)) for share in shares]
    order = sorted(range(count), key=lambda i: (ranks[i] - shares[i], -errors[i], i))
    left = total - sum(ranks)
    while left > 0:
        for i in order:
            if left > 0 and ranks[i] < most:
                ranks[i] += 1
                left -= 1
    return ranks


def _shares(errors: Sequence[float], total: int, least: int, most: int) -> list[float]:
    top = max(errors)
    if top <= 0:
        return [total / len(errors)] * len(errors)
    # Nine decades are more than ranks can tell apart; without a floor the factor has no bound.
    scaled = [max(e / top, 1e-9) for e in errors]

    def at(factor: float) -> list[float]:
        return [min(float(most), max(float(least), factor * e)) for e in scaled]

    low, high = 0.0, most * 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < total else (low, middle)
    return at(high)


def allocate_literal(errors: Sequence[float], mean: float, least: int, most: int) -> list[int]:
    """The public code: rounded shares, clipped, then one pass of corrections by one.

    The sum may miss `mean * len(errors)` where the bounds bite.
    """
    count, total = len(errors), round(mean * len(errors))
    whole = sum(errors)
    ranks = [min(most, max(least, round(e / whole * mean * count))) for e in errors]
    rising = sorted(range(count), key=lambda i: errors[i])
    for i in rising if sum(ranks) > total else rising[::-1]:
        gap = total - sum(ranks)
        if gap == 0:
            break
        ranks[i] = min(most, max(least, ranks[i] + (1 if gap > 0 else -1)))
    return ranks
