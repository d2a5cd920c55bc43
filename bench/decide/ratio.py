"""The ratio of two medians with its block bootstrap interval; a block is one process.

Samples of one process share its memory layout, its threads and its minute on a shared machine, so
they are no independent samples of anything: whole processes are drawn (the block bootstrap of
Kunsch 1989, with blocks that are given rather than cut). scipy.stats.bootstrap draws single
values only, hence the few lines of numpy here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Blocks = Sequence[Sequence[float]]  # seconds; one inner sequence a process

RESAMPLES = 4_999
CONFIDENCE = 0.95
# Under six blocks no interval for a median can reach 95 %: all of n values lie on one side of it
# with a chance of 2 / 2**n, and 2 / 2**5 > 0.05.
MIN_BLOCKS = 6


@dataclass(frozen=True)
class Ratio:
    """New seconds over base seconds: above 1 the new side is slower."""

    value: float
    low: float
    high: float
    blocks: int  # of the side that has fewer
    paired: bool
    confidence: float = CONFIDENCE

    @property
    def supported(self) -> bool:
        """Whether there are blocks enough for the interval to mean what it says."""
        return self.blocks >= MIN_BLOCKS

    @property
    def half_width(self) -> float:
        """Half the interval's length, as a share of the ratio."""
        return (self.high - self.low) / 2 / self.value

    def inverse(self) -> Ratio:
        """Base over new: a speedup."""
        return Ratio(
            1 / self.value, 1 / self.high, 1 / self.low, self.blocks, self.paired, self.confidence
        )


def ratio_of_medians(
    base: Blocks,
    new: Blocks,
    *,
    paired: bool,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Ratio:
    """The ratio of medians and its percentile interval.

    Args:
        base, new: seconds by process. Paired: `base[i]` and `new[i]` ran in turn, side by side.
        paired: each pair gives its own ratio (see `pair_ratios`), the result is the middle of
            these (pseudo-median, see `centre`), and pairs are drawn whole; what slowed both
            processes of a pair cancels. Otherwise samples are pooled and each side's processes
            are drawn by themselves.

    Raises:
        ValueError: an empty side or block, times that are not positive, unequal pairs.
    """
    _check(base, new, paired)
    draw = np.random.default_rng(seed)
    if paired:
        value, found = _paired(base, new, draw, resamples)
    else:
        value, found = _unpaired(base, new, draw, resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    blocks = min(len(base), len(new))
    # The percentile interval need not hold the estimate where few blocks are drawn.
    return Ratio(value, min(float(low), value), max(float(high), value), blocks, paired, confidence)


def pair_ratios(base: Blocks, new: Blocks) -> Floats:
    """Ratio of each pair, `[pairs]`: the median of the ratios of its rounds.

    The two readings of a round follow one another at once, so what slows the machine for a second
    cancels. On the recorded noise (docs/results/data/bench-noise.json, 32 rounds) that takes the
    spread of a pair from 5.7 % to 4.4 % against the ratio of the medians, which is left for
    pairs whose sides have unequal rounds.
    """
    return np.array([_pair_ratio(b, n) for b, n in zip(base, new, strict=True)])


def _pair_ratio(base: Sequence[float], new: Sequence[float]) -> float:
    if len(base) != len(new):
        return float(np.median(new) / np.median(base))
    # Of the logs, so that swapping the sides gives the inverse.
    return float(np.exp(np.median(np.log(np.divide(new, base)))))


def centre(rows: Floats) -> Floats:
    """Pseudo-median of each row of `[R, n]`: the median of the means of all pairs of values.

    Hodges and Lehmann 1963. For normal noise it needs 5 % more values than the mean where the
    median needs 57 % more, and a quarter of the values may be arbitrarily wrong.
    """
    i, j = np.triu_indices(rows.shape[1])
    return np.median((rows[:, i] + rows[:, j]) / 2, axis=1)


def _paired(
    base: Blocks, new: Blocks, draw: np.random.Generator, resamples: int
) -> tuple[float, Floats]:
    logs = np.log(pair_ratios(base, new))
    picked = draw.integers(0, len(logs), size=(resamples, len(logs)))
    return float(np.exp(centre(logs[None])[0])), np.exp(centre(logs[picked]))


def _unpaired(
    base: Blocks, new: Blocks, draw: np.random.Generator, resamples: int
) -> tuple[float, Floats]:
    value = float(np.median(np.concatenate(new)) / np.median(np.concatenate(base)))
    return value, _pooled(new, draw, resamples) / _pooled(base, draw, resamples)


def _pooled(blocks: Blocks, draw: np.random.Generator, resamples: int) -> Floats:
    """Median of all samples of each drawn set of blocks, `[resamples]`."""
    width = max(len(b) for b in blocks)
    table = np.full((len(blocks), width), np.nan)
    for row, block in zip(table, blocks, strict=True):
        row[: len(block)] = block
    picked = table[draw.integers(0, len(blocks), size=(resamples, len(blocks)))]
    return np.nanmedian(picked.reshape(resamples, -1), axis=1)


def _check(base: Blocks, new: Blocks, paired: bool) -> None:
    if not base or not new or any(len(b) == 0 for b in [*base, *new]):
        raise ValueError("a side or a process without samples")
    if not all(value > 0 for block in [*base, *new] for value in block):
        raise ValueError("seconds that are not above zero")
    if paired and len(base) != len(new):
        raise ValueError(f"{len(base)} and {len(new)} processes are no pairs")
