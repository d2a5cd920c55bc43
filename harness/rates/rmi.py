"""RMI: how important a block is by how little its representation repeats those of the others."""

from __future__ import annotations

import numpy as np

from harness.rates.cka import F64


def rmi_importance(cka: F64, beta: float = 1.0) -> F64:
    """Importance `[L]` of blocks by their CKA `[L, L]` (LoSA eq. 4).

    `c_i` is the sum of CKA with all other blocks, normalised to sum 1; `I_i = exp(-beta c_i)`.
    The order of blocks does not depend on `beta` (the public code has 1 and 100), and the exact
    rates depend on the order alone.
    """
    redundancy = cka.sum(axis=1) - np.diag(cka)
    total = float(redundancy.sum())
    share = redundancy / total if total else redundancy
    return np.exp(-beta * share)
