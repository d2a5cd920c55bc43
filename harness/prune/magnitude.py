"""Magnitude pruning: the score of a weight is its absolute value (Han et al. 2015, section 3)."""

from __future__ import annotations

import numpy as np

from exporter.store.dtypes import F32
from harness.prune.select import Bools, keep
from harness.prune.sparsity import Sparsity


def magnitude(weight: F32, sparsity: Sparsity) -> Bools:
    """Kept positions of `weight` `[out, in]`."""
    return keep(np.abs(weight), sparsity)
