"""How often the rule is wrong, and how often it finds a planted change, on recorded noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.decide.ratio import Blocks, ratio_of_medians
from bench.decide.rule import Judged, Rule, confirm, judge_cells, precise

Noise = NDArray[np.float64]  # [pairs, 2, rounds]: seconds of two equal sides, in order of time
_RESAMPLES = 499  # a tenth of what a real run draws: a simulation has hundreds of runs
_QUICK = 99  # where only the width is looked at


@dataclass(frozen=True)
class Design:
    """How many pairs of processes are measured: from `least` on until precise, `most` at most."""

    least: int = 8
    most: int = 24
    step: int = 4


@dataclass(frozen=True)
class Rates:
    """Shares of simulated runs."""

    slower: float  # confirmed
    once: float  # seen in the first measurement, confirmed or not
    noisy: float
    pairs: float  # mean number of pairs of the first measurement


def simulate(
    noise: Noise, slowdown: float, rule: Rule, design: Design, runs: int, seed: int, cells: int = 1
) -> Rates:
    """Run the whole decision, re-run included, `runs` times.

    A run is a stretch of the recording that begins anywhere (so that drift stays in), its sides
    swapped at random pair by pair, which is what the random order does, and the new side's
    seconds multiplied by `slowdown`. The re-run takes another stretch. More cells than one take
    a stretch each, and `slowdown` meets the first alone.
    """
    draw = np.random.default_rng(seed)
    slower = once = noisy = pairs = 0
    for _ in range(runs):
        first, used = _measure(noise, [slowdown] + [1.0] * (cells - 1), rule, design, draw)
        pairs += used
        suspects = [i for i, cell in enumerate(first) if cell.status == "slower"]
        final = [cell.status for cell in first if cell.status != "slower"]
        outcomes: list[str] = list(final)
        if suspects:
            once += 1
            factors = [slowdown if i == 0 else 1.0 for i in suspects]
            second, _ = _measure(noise, factors, rule, design, draw)
            outcomes += [confirm("slower", cell.status) for cell in second]
        slower += "slower" in outcomes
        noisy += "noisy" in outcomes and "slower" not in outcomes
    return Rates(slower / runs, once / runs, noisy / runs, pairs / runs)


def _measure(
    noise: Noise, factors: Sequence[float], rule: Rule, design: Design, draw: np.random.Generator
) -> tuple[list[Judged], int]:
    stretches = [_stretch(noise, design.most, factor, draw) for factor in factors]
    count = max(design.least, rule.blocks_needed(len(factors)))
    while count < design.most and not _precise(
        [(b[:count], n[:count]) for b, n in stretches], rule
    ):
        count = min(design.most, count + design.step)
    cells = [(base[:count], new[:count]) for base, new in stretches]
    return judge_cells(cells, rule, paired=True, resamples=_RESAMPLES), count


def _precise(cells: Sequence[tuple[Blocks, Blocks]], rule: Rule) -> bool:
    ratios = (ratio_of_medians(b, n, paired=True, resamples=_QUICK) for b, n in cells)
    return precise(list(ratios), rule)


def _stretch(
    noise: Noise, length: int, factor: float, draw: np.random.Generator
) -> tuple[Blocks, Blocks]:
    start = int(draw.integers(len(noise)))
    base: list[list[float]] = []
    new: list[list[float]] = []
    for i in range(length):
        pair = noise[(start + i) % len(noise)]
        swap = int(draw.integers(2))
        base.append(pair[swap].tolist())
        new.append((pair[1 - swap] * factor).tolist())
    return base, new
