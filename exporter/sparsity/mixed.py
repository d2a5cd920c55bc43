"""Mixed N:M: one M, an N of its own for each block, the whole at N0:M.

LoSA states the result (less important blocks keep fewer of M, the overall share constant) and no
rounding rule; its allowed deviation of the rates (eq. 5, 0.03 at most) is less than half a step
of 1/M, so rounding every rate to the nearest N gives N0 everywhere. Two rules that do mix:

- `equal_deviation`: as many blocks up as down by one, as many as the deviation allows in the
  mean. Exact for blocks of equal size.
- `spend_budget`: rates from any source, blocks of any size; never over the budget.

A block may as well be a single linear. Within a block each group of M keeps its N largest scores;
code that counts zeros (Wanda's `prune_n`) is called with M - N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.errors import UsageError
from exporter.sparsity.nm import GROUPS

_EXACT = 1e-9  # rates come from solvers: 1.9999999999 of 8 is 2 of 8


@dataclass(frozen=True)
class Bounds:
    """The N that a block may have. No block is pruned whole, so `least` is 1 or more."""

    least: int = 1
    most: int | None = None  # None: M

    @classmethod
    def of_2_4_kernel(cls) -> Bounds:
        """What a sparse tensor core's 2:4 format takes without loss: 2 of M at most.

        N:8 with N <= 2 has at most 2 in each half, so it is 2:4; 3:8 is not always.
        """
        return cls(1, 2)


@dataclass(frozen=True)
class MixedNM:
    """N by block. `sizes` are weights of each block, `[blocks]`."""

    n0: int
    m: int
    kept: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def density(self) -> float:
        """The achieved share of kept weights, over all blocks; N0 / M where there are none."""
        if not self.sizes:
            return self.n0 / self.m
        return sum(map(_times, self.kept, self.sizes)) / (self.m * sum(self.sizes))

    @property
    def unused(self) -> float:
        """Weights that N0:M would keep beyond these; never negative by `spend_budget`."""
        return (self.n0 * sum(self.sizes) - sum(map(_times, self.kept, self.sizes))) / self.m

    @property
    def labels(self) -> tuple[str, ...]:
        """ "3:8", "2:8", ... by block."""
        return tuple(f"{n}:{self.m}" for n in self.kept)


def _times(a: int, b: int) -> int:
    return a * b


def equal_deviation(
    importance: Sequence[float],
    *,
    n0: int,
    m: int,
    delta: float,
    insist: bool = False,
    sizes: Sequence[int] | None = None,
    bounds: Bounds | None = None,
) -> MixedNM:
    """The k most important of L blocks keep N0 + 1, the k least important N0 - 1.

    k = floor(delta * M * L / 2), so that the mean deviation of a rate is at most `delta`. The
    density is exactly N0 / M where blocks are of one size. Blocks of equal importance stand in
    the order given.

    Args:
        importance: of each block, `[L]`.
        n0: kept of M, in the mean.
        m: 4, 8 or 16.
        delta: mean deviation allowed, a share (LoSA eq. 5: 0.01 to 0.03).
        insist: at least one block up and one down.
        sizes: weights of each block, `[L]`, for the density; None where they are equal.
        bounds: the N allowed.

    Raises:
        UsageError: `usage` where the numbers or the bounds leave no room.
    """
    least, most = _checked(n0, m, bounds)
    blocks = len(importance)
    sizes = (1,) * blocks if sizes is None else tuple(sizes)
    if len(sizes) != blocks or not all(size > 0 for size in sizes):
        raise _usage(f"{len(sizes)} sizes for {blocks} blocks", "a size above 0 for each")
    if not (math.isfinite(delta) and delta >= 0):
        raise _usage(f"a deviation of {delta}", "0 or more")
    k = min(math.floor(delta * m * blocks / 2 + _EXACT), blocks // 2)
    if insist and blocks >= 2:
        k = max(k, 1)
    if k and not least <= n0 - 1 < n0 + 1 <= most:
        raise _usage(
            f"{n0}:{m} mixed with N from {least} to {most}",
            f"N0 from {least + 1} to {most - 1}, or no deviation: blocks get N0 - 1 and N0 + 1",
        )
    kept = [n0] * blocks
    order = _by_importance(importance)
    for block in order[:k]:
        kept[block] += 1
    for block in order[blocks - k :]:
        kept[block] -= 1
    return MixedNM(n0, m, tuple(kept), sizes)


def spend_budget(
    rates: Sequence[float],
    importance: Sequence[float],
    sizes: Sequence[int],
    *,
    n0: int,
    m: int,
    bounds: Bounds | None = None,
) -> MixedNM:
    """N by rate, rounded down; what N0:M has left goes to the largest remainders.

    Every block starts with floor((1 - rate) M) inside the bounds. Blocks then grow by one in the
    order of their remainder, then of their importance, again and again while the budget of
    N0 * sum(sizes) / M holds. If the start is over it, blocks shrink by one in turn, the least
    important first. What
    stays unused is less than one step (size / M) of the smallest block that could still grow.

    Args:
        rates: share of zeros wished for each block, `[L]`.
        importance: of each block, `[L]`.
        sizes: weights of each block, `[L]`.
        n0: kept of M, of the whole.
        m: 4, 8 or 16.
        bounds: the N allowed.

    Raises:
        UsageError: `usage` where the numbers or the bounds leave no room.
    """
    least, most = _checked(n0, m, bounds)
    _check_blocks(rates, importance, sizes)
    wished = [(1.0 - rate) * m for rate in rates]
    floors = [math.floor(wish + _EXACT) for wish in wished]
    kept = [min(max(n, least), most) for n in floors]
    ranked = _by_importance(importance)
    left = n0 * sum(sizes) - sum(map(_times, kept, sizes))
    left = _shrink(kept, sizes, ranked[::-1], left, least)
    rest = [wish - n for wish, n in zip(wished, floors, strict=True)]
    # The order of importance survives among equal remainders: Python's sort is stable.
    _grow(kept, sizes, sorted(ranked, key=lambda i: -round(rest[i], 9)), left, most)
    return MixedNM(n0, m, tuple(kept), tuple(sizes))


def _shrink(
    kept: list[int], sizes: Sequence[int], order: Sequence[int], left: int, least: int
) -> int:
    while left < 0:  # ends: all at `least` fit, since least <= n0
        for block in order:
            if left < 0 and kept[block] > least:
                kept[block] -= 1
                left += sizes[block]
    return left


def _grow(
    kept: list[int], sizes: Sequence[int], order: Sequence[int], left: int, most: int
) -> None:
    grew = True
    while grew:
        grew = False
        for block in order:
            if kept[block] < most and sizes[block] <= left:
                kept[block] += 1
                left -= sizes[block]
                grew = True


def _by_importance(importance: Sequence[float]) -> list[int]:
    if not all(math.isfinite(x) for x in importance):
        raise _usage("an importance that is not finite", "finite numbers")
    return sorted(range(len(importance)), key=lambda i: -importance[i])


def _checked(n0: int, m: int, bounds: Bounds | None) -> tuple[int, int]:
    bounds = bounds or Bounds()
    most = m if bounds.most is None else min(bounds.most, m)
    if m not in GROUPS:
        raise _usage(f"groups of {m}", f"M of {', '.join(map(str, GROUPS))}")
    if bounds.least < 1:
        raise _usage(f"N from {bounds.least}", "1 or more: no block is pruned whole")
    if not bounds.least <= n0 <= most:
        raise _usage(f"{n0}:{m} with N from {bounds.least} to {most}", "N0 within the bounds")
    return bounds.least, most


def _check_blocks(
    rates: Sequence[float], importance: Sequence[float], sizes: Sequence[int]
) -> None:
    if not len(rates) == len(importance) == len(sizes) > 0:
        raise _usage(
            f"{len(rates)} rates, {len(importance)} importances, {len(sizes)} sizes",
            "one of each for every block",
        )
    if not all(0.0 <= rate <= 1.0 for rate in rates):
        raise _usage("a rate outside 0 to 1", "the share of zeros of each block")
    if min(sizes) < 1:
        raise _usage(f"a block of {min(sizes)} weights", "1 or more")


def _usage(found: str, expected: str) -> UsageError:
    return UsageError("usage", f"mixed N:M: {found}", expected=expected)
