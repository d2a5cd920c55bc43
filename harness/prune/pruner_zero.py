"""Pruner-Zero: |W| |W| times the gradient's size, scaled to 0..1 over the matrix; no update.

Dong et al. 2024 (ICML); the tree of its code (`data/best_tree.json`) as `lib/prune.py` computes it:
`|W| * |W| * minmax(G)`, G the root of the summed squares of each sequence's gradient. Rows (or
groups of M) are pruned each on its own, as Wanda does.
"""

from __future__ import annotations

import numpy as np

from exporter.store.dtypes import F32
from harness.prune.select import Bools, keep
from harness.prune.sparsity import Sparsity


def pruner_zero(weight: F32, squares: F32, sparsity: Sparsity) -> Bools:
    """Kept positions of `weight` `[out, in]`.

    Args:
        weight: `[out, in]`.
        squares: sum over sequences of the squared gradient, `[out, in]`. The code scales each
            gradient by 100 against float16's range, which cancels in the scaling here.
        sparsity: what to reach.
    """
    size = np.sqrt(squares)
    low, high = float(size.min()), float(size.max())
    size -= low
    size /= (high - low) or 1.0
    size *= weight
    size *= weight
    return keep(size, sparsity)
