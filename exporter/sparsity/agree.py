"""How two masks of one linear differ, and one digest over the masks of many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from exporter.sparsity.bits import popcount
from exporter.sparsity.mask import Mask


@dataclass(frozen=True)
class Difference:
    """Positions that one of two masks keeps and the other prunes."""

    only_left: int
    only_right: int
    first: tuple[int, int]  # (row, column) of the first, in row-major order


def difference(left: Mask, right: Mask) -> Difference | None:
    """None where the masks are equal bit for bit.

    Raises:
        ValueError: masks of different shapes.
    """
    if left.bits.shape != right.bits.shape or left.in_features != right.in_features:
        raise ValueError("masks of different shapes")
    if left == right:
        return None
    differ = left.bits ^ right.bits
    row = int(differ.any(axis=1).argmax())
    column = int(np.unpackbits(differ[row]).argmax())
    return Difference(
        popcount(left.bits & ~right.bits), popcount(right.bits & ~left.bits), (row, column)
    )


def masks_sha256(digests: Iterable[tuple[str, str]]) -> str:
    """One hex digest over `(module, Mask.sha256())` of every mask, in any order.

    SHA-256 over the lines "MODULE DIGEST" in the order of the modules' names.
    """
    whole = hashlib.sha256()
    for module, digest in sorted(digests):
        whole.update(f"{module} {digest}\n".encode())
    return whole.hexdigest()
