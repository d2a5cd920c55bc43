"""Medians with bootstrap intervals, ratios of pairs, and outliers: named, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bench.extras import need
from bench.results import Interval

RESAMPLES = 9_999
CONFIDENCE = 0.95
# Under six pairs no interval for a median can reach 95 %: the chance that all of n values lie
# on one side of it is 2 / 2**n (sign test), and 2 / 2**5 > 0.05.
MIN_ROUNDS = 6
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


def paired_speedup(dense: Sequence[float], sparse: Sequence[float], seed: int) -> Interval:
    """Median over rounds of `dense_seconds / sparse_seconds`: above 1 the sparse side is faster.

    One ratio a round, so that what slows both halves of a round cancels; a resample draws
    whole rounds.
    """
    pairs = zip(dense, sparse, strict=True)
    return median_interval([d / s for d, s in pairs], seed)


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
