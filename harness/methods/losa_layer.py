"""How LoSA's factors change their rank between iterations: growth for nothing, shrinking by rule.

LoSA (arXiv 2502.14816), the authors' reply on rank changes: grow by a random row of A and a zero
column of B, so the output stays (the scale does not depend on the rank); shrink by dropping the
last rows and columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Shrink = Literal["truncate", "fold", "svd"]


def grow(a: Tensor, b: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A `[r, in]` and B `[out, r]` with random rows and zero columns up to `rank`."""
    more = rank - len(a)
    if more <= 0:
        return a, b
    width = a.shape[1]
    rows = torch.empty(more, width).uniform_(-1.0, 1.0, generator=generator) / width**0.5
    return torch.cat([a, rows.to(a)]), torch.cat([b, b.new_zeros(len(b), more)], dim=1)


def shrink(a: Tensor, b: Tensor, rank: int, how: Shrink) -> tuple[Tensor, Tensor, Tensor | None]:
    """The first `rank` rows and columns, and with `fold` the product of what is dropped.

    `truncate`: as the paper; the function changes by exactly what is dropped. `fold`: the rest
    `B[:, r:] A[r:]`, to be added to the weight under its mask, so nothing changes. `svd`: the best
    factors of that rank for the unmasked product.
    """
    if rank >= len(a):
        return a, b, None
    if how == "svd":
        return (*_best(a, b, rank), None)
    rest = torch.mm(b[:, rank:], a[rank:]) if how == "fold" else None
    return a[:rank].clone(), b[:, :rank].clone(), rest


def _best(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Truncated SVD of B A, through two QR decompositions of the thin factors."""
    qb, rb = torch.linalg.qr(b.double())
    qa, ra = torch.linalg.qr(a.double().t())
    u, s, vt = torch.linalg.svd(rb @ ra.t())
    root = s[:rank].sqrt()
    new_b = qb @ (u[:, :rank] * root)
    new_a = (root[:, None] * vt[:rank]) @ qa.t()
    return new_a.to(a), new_b.to(b)
