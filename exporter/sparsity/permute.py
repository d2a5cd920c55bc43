"""Orders of channels: applied, undone, and moved in whole groups so that N:M survives.

An order is int64 `[size]`: place `i` of the permuted axis holds channel `order[i]` of the base,
as `weight[order]` does in numpy and as S2FT's code builds its checkpoints (s2_utils.py:
`W_up[order]`, `W_down[:, order]`). Rows may move freely. Columns carry the N:M groups: an
order of columns that does not move whole groups destroys the pattern (docs/reference/patterns.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exporter.errors import InputRefused
from exporter.sparsity.mask import Mask

Order = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
_BLOCK_ROWS = 256  # of an unpacked mask


def as_order(
    values: ArrayLike, size: int, *, file: str | None = None, tensor: str | None = None
) -> Order:
    """`values` as an order of `size` channels; `file` and `tensor` are for the message.

    Raises:
        InputRefused: `permutation-invalid` where they are not each of 0 to size - 1 once.
    """
    found: NDArray[Any] = np.asarray(values)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        what = f"{found.dtype}{list(found.shape)}"
    elif len(found) != size:
        what = f"{len(found)} entries"
    else:
        what = _not_each_once(found, size)
    if what:
        raise InputRefused(
            "permutation-invalid",
            what,
            expected=f"each channel from 0 to {size - 1} once, as integers",
            file=file,
            tensor=tensor,
        )
    return found.astype(np.int64)


def _not_each_once(found: NDArray[Any], size: int) -> str:
    outside = (found < 0) | (found >= size)
    if outside.any():
        return f"channel {found[outside.argmax()]} at place {outside.argmax()}"
    times = np.bincount(found.astype(np.int64), minlength=size)
    if times.size and times.max() > 1:
        return f"channel {times.argmax()} stands there {times.max()} times"
    return ""


def inverse(order: Order) -> Order:
    """The order that undoes `order`: `x[order][inverse(order)]` is x."""
    undone = np.empty_like(order)
    undone[order] = np.arange(len(order), dtype=np.int64)
    return undone


def permute_columns(rows: NDArray[Scalar], order: Order) -> NDArray[Scalar]:
    """A fresh block `[n, in]` whose column i is column `order[i]` of `rows` `[n, in]`."""
    return rows[:, order]


def permuted_rows(
    rows: Callable[[int, int], NDArray[Scalar]], order: Order
) -> Callable[[int, int], NDArray[Scalar]]:
    """A reader of rows `[r0:r1]` of the permuted tensor, row i being row `order[i]` of `rows`.

    Reads each run of consecutive rows at once and holds no more than the rows asked for.
    """

    def read(r0: int, r1: int) -> NDArray[Scalar]:
        wanted = order[r0:r1]
        if not len(wanted):
            return rows(0, 0)
        starts = np.flatnonzero(np.diff(wanted, prepend=wanted[0] - 2) != 1)
        parts = [rows(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, starts[1:])]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return read


def permute_mask_columns(mask: Mask, order: Order) -> Mask:
    """The mask of `weight[:, order]`."""
    packed = [
        np.packbits(permute_columns(block, order), axis=1)
        for _, block in mask.iter_rows(_BLOCK_ROWS)
    ]
    return Mask(mask.out_features, mask.in_features, np.concatenate(packed))


def permute_mask_rows(mask: Mask, order: Order) -> Mask:
    """The mask of `weight[order]`."""
    return Mask(mask.out_features, mask.in_features, mask.bits[order])


def broken_groups(order: Order, m: int) -> int:
    """Groups of `m` columns that would hold columns of more than one group of before.

    0 means that `order` moves whole groups (and may shuffle inside them): every N:M pattern
    survives. A ragged last group then stays last, since no other has its size.
    """
    source = order // m
    starts = np.arange(0, len(order), m)
    if not len(starts):
        return 0
    low, high = np.minimum.reduceat(source, starts), np.maximum.reduceat(source, starts)
    return int(np.count_nonzero(low != high))


def whole_groups(order: Order, m: int) -> Order:
    """The order that moves whole groups of `m` and is nearest to `order`.

    Groups come in the order in which `order` first names one of their channels; inside a group
    channels keep their places. A ragged last group stays last. So channels that `order` brings
    to the front (those that S2FT trains) lie in the first groups, though not side by side.
    """
    size = len(order)
    groups, first = np.unique(order // m, return_index=True)
    ranked = groups[np.argsort(first, kind="stable")]
    if size % m:
        ranked = np.append(ranked[ranked != size // m], size // m)
    channels = (ranked[:, None] * m + np.arange(m)).reshape(-1)
    return channels[channels < size]
