"""Medians with bootstrap intervals, speedups of pairs, and outliers: named, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bench.decide.ratio import MIN_BLOCKS, Blocks, pair_ratios, ratio_of_medians
from bench.extras import need
from bench.results import Interval

RESAMPLES = 9_999
CONFIDENCE = 0.95
MIN_ROUNDS = MIN_BLOCKS
# Modified z-score on the MAD (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers").
OUTLIER_Z = 3.5


def median_interval(values: Sequence[float], seed: int) -> Interval:
    """Median of `values` with its percentile bootstrap interval at 95 %.

    The percentile form, since the median is not smooth in the sample: BCa's jackknife has two
    or three distinct values there and its acceleration means nothing (Efron and Tibshirani
    1993, chapter 14). With fewer than `MIN_ROUNDS` values `supported` is False and the interval
    is the range.
    """
    if not values:
        raise ValueError("no values")
    sample = np.asarray(values, dtype=np.float64)
    outliers = find_outliers(sample)
    median = float(np.median(sample))
    if len(values) < MIN_ROUNDS:
        low, high = float(sample.min()), float(sample.max())
    else:
        low, high = _bootstrap(sample, seed)
    return Interval(
        median=median,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        n=len(values),
        supported=len(values) >= MIN_ROUNDS,
        outliers=outliers,
    )


def speedup_interval(dense: Blocks, sparse: Blocks, seed: int) -> Interval:
    """Dense over sparse seconds, paired by process: above 1 the sparse side is faster.

    As `bench.decide.ratio`, the other way up; under `MIN_ROUNDS` pairs the range of the pairs.
    """
    found = ratio_of_medians(dense, sparse, paired=True, seed=seed).inverse()
    pairs = 1 / pair_ratios(dense, sparse)
    low, high = (
        (found.low, found.high) if found.supported else (float(pairs.min()), float(pairs.max()))
    )
    return Interval(
        median=found.value,
        low=low,
        high=high,
        confidence=found.confidence,
        n=found.blocks,
        supported=found.supported,
        outliers=find_outliers(pairs),
    )


def find_outliers(sample: NDArray[np.float64]) -> list[int]:
    """Indices whose modified z-score passes `OUTLIER_Z`; none where more than half are equal."""
    deviation = np.abs(sample - np.median(sample))
    mad = float(np.median(deviation))
    if mad == 0.0:
        return []
    return [int(i) for i in np.flatnonzero(0.6745 * deviation / mad > OUTLIER_Z)]


def _bootstrap(sample: NDArray[np.float64], seed: int) -> tuple[float, float]:
    if float(np.ptp(sample)) == 0.0:
        return float(sample[0]), float(sample[0])  # nothing to resample; scipy would warn
    bootstrap = cast(Any, need("scipy.stats")).bootstrap
    result = bootstrap(
        (sample,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)
