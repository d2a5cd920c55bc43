"""Percentiles with order-statistic intervals, given only where the number of values allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from bench.extras import need
from bench.parts import Frozen

LEVELS = (0.50, 0.90, 0.95, 0.99)
CONFIDENCE = 0.95


class Percentile(Frozen):
    """One percentile; `value` is null where n values cannot give it."""

    level: float
    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def text(self) -> str:
        """ "p99"."""
        return f"p{self.level * 100:g}"


def values_needed(level: float) -> int:
    """Fewest values for a percentile: 1 / (1 - level), so that one is expected beyond it."""
    return math.ceil(round(1 / (1 - level), 9))


def percentiles(values: Sequence[float], levels: Sequence[float] = LEVELS) -> list[Percentile]:
    """Each level with its distribution-free interval at 95 %.

    The bounds are values of the sample, by the binomial distribution of how many lie below
    (scipy.stats.quantile_test; Conover 1999, 3.2); a bound that no value can be is null. The
    values are taken as independent; those of one process are not quite, so the interval of many
    tokens of few processes is a lower bound of the uncertainty.
    """
    return [_percentile(values, level) for level in levels]


def _percentile(values: Sequence[float], level: float) -> Percentile:
    n = len(values)
    if n < values_needed(level):
        return Percentile(level=level, value=None, low=None, high=None, n=n)
    sample = np.asarray(values, dtype=np.float64)
    value = float(np.quantile(sample, level))
    test = cast(Any, need("scipy.stats")).quantile_test
    interval = test(sample, q=value, p=level).confidence_interval(CONFIDENCE)
    return Percentile(
        level=level, value=value, low=_known(interval.low), high=_known(interval.high), n=n
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
