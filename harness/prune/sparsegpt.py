"""SparseGPT: prune column by column, and let the columns to come make up for the error.

Frantar and Alistarh 2023 (ICML), algorithm 1, and `sparsegpt.py` of its code: `H = X^T X` damped by
0.01 of its mean diagonal, `U` the upper Cholesky factor of `H^-1`; in blocks of 128 columns the
weights with the lowest `w^2 / U_jj^2` go, and each column's error `w / U_jj` is spread over the
columns after it by its row of `U`.

Its code cuts at `score <= threshold`, one weight too many in each block; the count is exact here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from exporter.errors import VerificationFailed
from harness.prune.select import Bools, keep
from harness.prune.sparsity import NM, Sparsity, Unstructured

BLOCK = 128
DAMPING = 0.01
_RETRIES = 4  # each damps ten times more


@dataclass
class _Block:
    """Columns `[first:last)` while they are swept."""

    part: torch.Tensor  # [out, width]
    factor: torch.Tensor  # [width, width], upper
    errors: torch.Tensor  # [out, width]
    kept: Bools  # [out, width]


def sparsegpt(
    weight: torch.Tensor,
    gram: torch.Tensor,
    sparsity: Sparsity,
    *,
    damping: float = DAMPING,
    block: int = BLOCK,
    within: Bools | None = None,
) -> tuple[torch.Tensor, Bools]:
    """`(new weight, kept positions)`, both `[out, in]`; float32.

    An unstructured share is reached over all rows of each block of columns together, N:M in every
    group. An input that was never there (diagonal 0) loses its weights' values.

    Args:
        weight: `[out, in]` float32; not changed.
        gram: `X^T X` of the inputs, `[in, in]` float32; a factor on it changes nothing.
        sparsity: what to reach.
        damping: of the mean diagonal, added to the diagonal.
        block: columns in a block.
        within: kept positions of an earlier pass: zeros outside stay zero and count as pruned, so
            that masks nest. Without it a second pass revives some, since updates fill old zeros.

    Raises:
        VerificationFailed: `hessian-singular`.
    """
    factor = inverse_factor(gram, damping)
    new = weight.clone()
    new[:, gram.diagonal() == 0] = 0
    kept = np.ones(tuple(weight.shape), dtype=np.bool_)
    if isinstance(sparsity, NM):  # a group lies in one block
        block = max(sparsity.m, block - block % sparsity.m)
    for first in range(0, weight.shape[1], block):
        at = slice(first, min(first + block, weight.shape[1]))
        done = _sweep(new[:, at].clone(), factor[at, at], sparsity, _columns(within, at))
        new[:, at], kept[:, at] = done.part, done.kept
        new[:, at.stop :].addmm_(done.errors, factor[at, at.stop :], alpha=-1)
    return new, kept


def inverse_factor(gram: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Upper Cholesky factor of the damped inverse, float32 `[in, in]`; worked out in float64.

    Where the damped matrix is still singular in float64 it is damped ten times more, and again.

    Raises:
        VerificationFailed: `hessian-singular`.
    """
    h = gram.double()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1.0
    step = damping * float(diagonal.mean())
    added = 0.0
    for _ in range(_RETRIES):
        diagonal += step - added
        added = step
        lower, fault = torch.linalg.cholesky_ex(h)
        if int(fault) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, fault = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(fault) == 0:
                return upper.float()
        step *= 10
    raise VerificationFailed(
        "hessian-singular",
        f"the inputs' second moments cannot be inverted, damped by up to {added:.3g}",
        expected="a positive definite matrix",
    )


def _columns(within: Bools | None, at: slice) -> Bools | None:
    return None if within is None else within[:, at]


def _sweep(
    part: torch.Tensor, factor: torch.Tensor, sparsity: Sparsity, within: Bools | None
) -> _Block:
    """Prune the columns of one block from left to right."""
    free = None if within is None else torch.from_numpy(within)
    kept = np.ones(tuple(part.shape), dtype=np.bool_)
    if isinstance(sparsity, Unstructured):
        whole = Unstructured(sparsity.share, "tensor")
        kept = _choose(part, factor.diagonal(), whole, within)
    done = _Block(part, factor, torch.zeros_like(part), kept)
    for j in range(part.shape[1]):
        if isinstance(sparsity, NM) and j % sparsity.m == 0:
            group = slice(j, j + sparsity.m)
            diagonal = factor.diagonal()[group]
            kept[:, group] = _choose(part[:, group], diagonal, sparsity, _columns(within, group))
        column = part[:, j] if free is None else part[:, j] * free[:, j]
        stays = torch.from_numpy(kept[:, j])
        error = torch.where(stays, 0.0, column) / factor[j, j]
        part[:, j:].addr_(error, factor[j, j:], alpha=-1)
        part[:, j] = torch.where(stays, column, 0.0)
        done.errors[:, j] = error
    return done


def _choose(
    part: torch.Tensor, diagonal: torch.Tensor, sparsity: Sparsity, within: Bools | None
) -> Bools:
    scores = (part / diagonal).square().numpy()
    if within is None:
        return keep(scores, sparsity)
    return keep(np.where(within, scores, np.float32(-1)), sparsity) & within
