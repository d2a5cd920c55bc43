"""Wanda: |W| times the norm of its input over calibration text, per output row, no update.

Sun et al. 2024 (ICLR), equation 1; its code (`lib/prune.py`, `lib/layerwrapper.py`) takes the mean
over sequences where a sum is here: one factor per linear changes no order.
"""

from __future__ import annotations

import numpy as np

from exporter.store.dtypes import F32
from harness.prune.select import Bools, keep
from harness.prune.sparsity import Sparsity


def wanda(weight: F32, norm: F32, sparsity: Sparsity) -> Bools:
    """Kept positions of `weight` `[out, in]`.

    Zeros have score 0 and go first, so a mask at a higher sparsity lies in one at a lower.

    Args:
        weight: `[out, in]`.
        norm: of each input over all tokens, `[in]`.
        sparsity: what to reach.
    """
    scores = np.abs(weight)
    scores *= norm
    return keep(scores, sparsity)
