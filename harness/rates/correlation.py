"""Do two importances order the blocks alike? Rank correlations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import stats

from harness.rates.cka import F64


@dataclass(frozen=True)
class RankCorrelation:
    """Of two orders of the same blocks; NaN where one of them is constant."""

    spearman: float
    kendall: float


def rank_correlation(a: F64, b: F64) -> RankCorrelation:
    """Spearman's rho and Kendall's tau-b of two importances `[L]`."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankCorrelation(float("nan"), float("nan"))
    rho, tau = cast(Any, stats.spearmanr(a, b)), cast(Any, stats.kendalltau(a, b))
    return RankCorrelation(float(rho.statistic), float(tau.statistic))
