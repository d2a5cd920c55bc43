"""From scores to kept positions. Pure functions; ties go to the lower index, so masks nest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exporter.store.dtypes import F32
from harness.prune.sparsity import NM, Sparsity, Unstructured

Bools = NDArray[np.bool_]
BLOCK_ELEMENTS = 1 << 22  # of scores in flight while selecting row by row


def keep(scores: F32, sparsity: Sparsity) -> Bools:
    """Kept positions, bool `[out, in]`, of finite scores `[out, in]`: the lowest go."""
    if isinstance(sparsity, Unstructured) and sparsity.scope == "tensor":
        return _drop_lowest(scores.reshape(1, -1), _count(scores.size, sparsity.share)).reshape(
            scores.shape
        )
    out = np.empty(scores.shape, dtype=np.bool_)
    step = max(1, BLOCK_ELEMENTS // scores.shape[1])
    for r0 in range(0, len(scores), step):
        out[r0 : r0 + step] = _keep_rows(scores[r0 : r0 + step], sparsity)
    return out


def _keep_rows(scores: F32, sparsity: Sparsity) -> Bools:
    if isinstance(sparsity, Unstructured):
        return _drop_lowest(scores, _count(scores.shape[1], sparsity.share))
    return _keep_nm(scores, sparsity)


def _count(width: int, share: float) -> int:
    # Wanda's int(in * share); the small term undoes 0.29 * 100 = 28.999999999999996.
    return int(width * share + 1e-9)


def _keep_nm(scores: F32, pattern: NM) -> Bools:
    rows, width = scores.shape
    whole = width - width % pattern.m
    groups = scores[:, :whole].reshape(-1, pattern.m)
    kept = _drop_lowest(groups, pattern.m - pattern.n).reshape(rows, whole)
    tail = width - whole
    if tail:
        dropped = tail - -(-pattern.n * tail // pattern.m)
        kept = np.concatenate([kept, _drop_lowest(scores[:, whole:], dropped)], axis=1)
    return kept


def _drop_lowest(scores: F32, count: int) -> Bools:
    """Bool like `scores`, False at the `count` lowest of each row, by (score, index)."""
    if count == 0 or scores.size == 0:
        return np.ones(scores.shape, dtype=np.bool_)
    bound = np.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    dropped = scores < bound
    missing = count - dropped.sum(axis=1, keepdims=True, dtype=np.int32)
    ties = scores == bound
    dropped |= ties & (np.cumsum(ties, axis=1, dtype=np.int32) <= missing)
    return ~dropped
