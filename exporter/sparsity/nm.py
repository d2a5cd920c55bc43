"""N:M figures straight on packed bits: how many weights each group of M inputs keeps.

"N:M" here is N kept of M consecutive weights along the input axis, in every row: the order in
which Wanda and SparseGPT group, and that of sparse tensor cores (2:4). The papers' "N:M
sparsity" names the same N; code that counts zeros (`prune_n` of Wanda) names M - N.
"""

from __future__ import annotations

import numpy as np

from exporter.sparsity.bits import U8, nibble_counts
from exporter.sparsity.mask import Mask

GROUPS: tuple[int, ...] = (4, 8, 16)


def group_counts(bits: U8, m: int) -> U8:
    """Kept weights per group: uint8 `[rows, groups]` of `bits` `[rows, ceil(in / 8)]`.

    A ragged last group (in % m != 0) counts what it has. For m = 4 a group more may stand at
    the end, of padding only, where in % 8 is 1 to 4: its count is 0.
    """
    halves = nibble_counts(bits)
    high, low = halves >> np.uint8(4), halves & np.uint8(15)
    if m == 4:
        return np.stack([high, low], axis=-1).reshape(bits.shape[0], -1)
    counts = high + low
    if m == 8:
        return counts
    if m == 16:
        return _pair_sums(counts)
    raise ValueError(f"groups of {m} are not known, only {GROUPS}")


def group_max(bits: U8) -> dict[int, int]:
    """M -> most kept weights in any group of M inputs, for every M of `GROUPS`."""
    if not bits.size:
        return dict.fromkeys(GROUPS, 0)
    halves = nibble_counts(bits)
    high, low = halves >> np.uint8(4), halves & np.uint8(15)
    counts = high + low
    return {
        4: int(np.maximum(high, low).max()),
        8: int(counts.max()),
        16: int(_pair_sums(counts).max()),
    }


def _pair_sums(counts: U8) -> U8:
    out = counts[:, 0::2].copy()
    whole = counts.shape[1] // 2
    out[:, :whole] += counts[:, 1::2]
    return out


def capacity(in_features: int, n: int, m: int) -> int:
    """Most weights that one row can keep under N:M; a ragged last group keeps its width at most."""
    whole, rest = divmod(in_features, m)
    return whole * min(n, m) + min(n, rest)


def first_violation(mask: Mask, n: int, m: int) -> tuple[int, int] | None:
    """First `(row, group)`, in row-major order, that keeps more than `n` of `m`; None if none."""
    step = max(1, (1 << 20) // max(1, mask.bits.shape[1]))
    for r0 in range(0, mask.out_features, step):
        over = group_counts(mask.bits[r0 : r0 + step], m) > n
        if over.any():
            row, group = np.unravel_index(int(over.argmax()), over.shape)
            return r0 + int(row), int(group)
    return None
