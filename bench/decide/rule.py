"""When is a cell slower? The rule for one cell, for many, and for the re-run that confirms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.decide.ranks import holm, pairs_needed, rank_test
from bench.decide.ratio import CONFIDENCE, MIN_BLOCKS, RESAMPLES, Blocks, Ratio, ratio_of_medians

Status = Literal["same", "slower", "faster", "near", "noisy"]
Confirmed = Literal["same", "slower", "faster", "near", "noisy", "unconfirmed"]


@dataclass(frozen=True)
class Rule:
    """What counts as a difference.

    `min_effect` is the smallest change worth a word; with `precision`, the half-width at which
    measuring may stop, a change of `min_effect + 2 * precision` is found with high power.
    """

    min_effect: float = 0.02
    alpha: float = 0.05
    precision: float = 0.01
    confidence: float = CONFIDENCE

    def blocks_needed(self, cells: int) -> int:
        """Fewest processes a side with which this many cells can be decided at all."""
        return max(MIN_BLOCKS, pairs_needed(cells, self.alpha))


@dataclass(frozen=True)
class Judged:
    """One cell: the ratio of new over base seconds, its p, and what they say."""

    ratio: Ratio
    p: float
    p_holm: float
    status: Status


def judge_cells(
    cells: Sequence[tuple[Blocks, Blocks]],
    rule: Rule,
    *,
    paired: bool,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Judged]:
    """Ratio, test and status of each cell (base, new), corrected for their number."""
    ratios = [
        ratio_of_medians(
            base, new, paired=paired, seed=seed, confidence=rule.confidence, resamples=resamples
        )
        for base, new in cells
    ]
    raw = [rank_test(base, new, paired=paired) for base, new in cells]
    return [
        Judged(ratio, p, adjusted, status_of(ratio, adjusted, rule))
        for ratio, p, adjusted in zip(ratios, raw, holm(raw), strict=True)
    ]


def status_of(ratio: Ratio, p_holm: float, rule: Rule) -> Status:
    """What one interval and its corrected p say.

    slower, faster: the whole interval lies beyond the minimum effect, and the ranks agree.
    same: the whole interval lies within it. near: the interval is as narrow as was asked for, and
    holds the minimum effect; nothing more is to be had by measuring. noisy: it is too wide, or
    the ranks of too few processes cannot agree with it.
    """
    bound = 1 + rule.min_effect
    if not ratio.supported:
        return "noisy"
    if p_holm < rule.alpha and ratio.low > bound:
        return "slower"
    if p_holm < rule.alpha and ratio.high < 1 / bound:
        return "faster"
    if ratio.low >= 1 / bound and ratio.high <= bound:
        return "same"
    holds = ratio.low <= bound <= ratio.high or ratio.low <= 1 / bound <= ratio.high
    return "near" if holds and ratio.half_width <= rule.precision else "noisy"


def precise(ratios: Sequence[Ratio], rule: Rule) -> bool:
    """Whether measuring may stop. It looks at widths alone: stopping when a difference shows
    would find one in any noise, sooner or later."""
    return all(r.supported and r.half_width <= rule.precision for r in ratios)


def confirm(first: Status, second: Status) -> Confirmed:
    """A cell after an independent re-run of it; only "slower" needs one.

    `unconfirmed`: the re-run says that nothing is wrong. `noisy`: it says neither.
    """
    if first != "slower" or second == "slower":
        return first
    return "noisy" if second in ("noisy", "near") else "unconfirmed"


def worst(statuses: Mapping[str, Confirmed] | Sequence[Confirmed]) -> Confirmed:
    """The status that decides over all cells: a confirmed regression, then noise, then the rest."""
    found = list(statuses.values()) if isinstance(statuses, Mapping) else list(statuses)
    order: tuple[Confirmed, ...] = ("slower", "noisy", "unconfirmed", "near", "faster", "same")
    return next(status for status in order if status in found)
