"""From importance to layer rates: the linear program of LoSA (eq. 5), solved exactly.

    minimise sum_i I_i s_i   subject to   sum_i n_i s_i = s sum_i n_i,  s - d <= s_i <= s + d

so that important blocks are pruned less. The paper's code uses SLSQP from an infeasible point,
which stops before the optimum for some `beta`; HiGHS (through scipy) gives the vertex.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from exporter.errors import UsageError, VerificationFailed
from harness.rates.cka import F64

_TIE = 1e-9  # importances this near, relative to the largest, are equal


def default_delta(target: float) -> float:
    """Largest deviation of a rate: 0.01 up to a share of 0.5, 0.02 up to 0.6, else 0.03.

    LoSA's code; above 0.7 it defines none and keeps what the step before had: 0.03 here.
    """
    return 0.01 if target <= 0.5 else 0.02 if target <= 0.6 else 0.03


def layer_rates(
    importance: Sequence[float] | F64,
    target: float,
    delta: float | None = None,
    sizes: Sequence[int] | None = None,
) -> F64:
    """Share of zeros of each block, float64 `[L]`; the mean, weighted by `sizes`, is `target`.

    Blocks that weigh alike and are alike important may stand in any order.

    Args:
        importance: `[L]`, finite; only its order and its ties matter where sizes are equal. What
            differs by less than 1e-9 of the largest is a tie.
        target: share of zeros of the whole, 0 to 1.
        delta: largest deviation; None is `default_delta(target)`. Rates stay within 0 and 1.
        sizes: weights of each block, `[L]`; None where they are equal.

    Raises:
        UsageError: `usage`.
    """
    values = np.asarray(importance, dtype=np.float64)
    weights = np.ones(values.size) if sizes is None else np.asarray(sizes, dtype=np.float64)
    delta = default_delta(target) if delta is None else delta
    if not 0.0 <= target <= 1.0 or not (math.isfinite(delta) and delta >= 0.0):
        raise _usage(f"a target of {target} within {delta}", "a share from 0 to 1, a delta from 0")
    if values.ndim != 1 or not values.size or weights.shape != values.shape:
        raise _usage(f"{values.size} importances, {weights.size} sizes", "one for each block")
    if not np.isfinite(values).all() or not (weights > 0).all():
        raise _usage("an importance that is not finite, or a size of 0", "numbers, weights")
    # Rounding may not decide: equal blocks, summed up in another order, differ in their last bit.
    step = _TIE * float(np.abs(values).max()) or 1.0
    values = np.round(values / step) * step
    bounds = (max(0.0, target - delta), min(1.0, target + delta))
    share = weights / weights.sum()
    # HiGHS' tolerances are absolute, while exp(-beta c) may differ by 1e-6 alone. The constraint
    # fixes sum(share * rates), so cost by weight may be shifted and scaled.
    cost = values / share
    cost = (cost - cost.min()) / (float(np.ptp(cost)) or 1.0)
    found = linprog(
        cost * share, A_eq=share[None, :], b_eq=[target],
        bounds=[bounds] * values.size, method="highs",
    )  # fmt: skip
    if found.status != 0:
        raise VerificationFailed("rates-unsolved", f"layer rates: {found.message}")
    return np.asarray(found.x, dtype=np.float64)


def _usage(found: str, expected: str) -> UsageError:
    return UsageError("usage", f"layer rates: {found}", expected=expected)
