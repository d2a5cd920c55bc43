"""Which group a row or a column belongs to, when groups need not divide the size.

Pooling adapters partition inputs and outputs into groups; a(i) and b(j) are the group of row i
and of column j. The rules are those of MoRA (contiguous, strided) and their readings for sizes
that do not divide; `adaptive_avg_pool1d` of torch is none of them, since its bins overlap.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Grouping = Literal["balanced", "ceil", "size", "strided"]
Ints = NDArray[np.int64]


def group_of(size: int, groups: int, rule: Grouping, group_size: int | None = None) -> Ints:
    """Group of each of `size` positions, int64 `[size]`, values `0 .. groups - 1`.

    Args:
        size: positions d.
        groups: g, from 1 to d.
        rule: `balanced` (group k is `[kd // g, (k + 1)d // g)`), `ceil` (groups of
            `ceil(d / g)`, the last one shorter), `size` (groups of `group_size`, the last one
            shorter), `strided` (`j mod g`).
        group_size: for `size` only; `groups` is then `ceil(d / group_size)`.

    Raises:
        ValueError: g out of range, groups that stay empty, or a `group_size` that gives another
            number of groups.
    """
    if not 1 <= groups <= size:
        raise ValueError(f"{groups} groups of {size} positions")
    at = np.arange(size, dtype=np.int64)
    if rule == "balanced":
        # The smallest k with (k + 1)d // g > i.
        return ((at + 1) * groups - 1) // size
    if rule == "strided":
        return at % groups
    width = -(-size // groups) if rule == "ceil" else group_size
    if width is None or width < 1:
        raise ValueError(f"a group size of {width}")
    filled = -(-size // width)
    if filled != groups:
        raise ValueError(f"groups of {width} fill {filled} of {groups} groups of {size} positions")
    return at // width


def group_sizes(group: Ints, groups: int) -> Ints:
    """How many positions each group has, int64 `[groups]`."""
    return np.bincount(group, minlength=groups)
