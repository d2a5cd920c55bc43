"""SparseGPT: prune column by column, and let the columns to come make up for the error.

Frantar and Alistarh 2023 (ICML), algorithm 1, and `sparsegpt.py` of its code: `H = X^T X` damped by
0.01 of its mean diagonal, `U` the upper Cholesky factor of `H^-1`; in blocks of 128 columns the
weights with the lowest `w^2 / U_jj^2` go, and each column's error `w / U_jj` is spread over the
columns after it by its row of `U`.

Its code cuts at `score <= threshold`, one weight too many in each block; the count is exact here.
"""

from __future__ import annotations

import numpy as np
import torch

from exporter.errors import VerificationFailed
from exporter.store.dtypes import F32
from harness.prune.select import Bools, keep
from harness.prune.sparsity import NM, Sparsity, Unstructured

BLOCK = 128
DAMPING = 0.01
_RETRIES = 4  # each damps ten times more


def sparsegpt(
    weight: torch.Tensor,
    gram: torch.Tensor,
    sparsity: Sparsity,
    *,
    damping: float = DAMPING,
    block: int = BLOCK,
    within: Bools | None = None,
    name: str | None = None,
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
        name: of the linear, for the error.

    Raises:
        VerificationFailed: `hessian-singular`.
    """
    factor = inverse_factor(gram, damping, name)
    new = weight.clone()
    new[:, gram.diagonal() == 0] = 0
    kept = np.ones(tuple(weight.shape), dtype=np.bool_)
    if isinstance(sparsity, NM):  # a group lies in one block
        block = max(sparsity.m, block - block % sparsity.m)
    for first in range(0, weight.shape[1], block):
        at = slice(first, min(first + block, weight.shape[1]))
        part = np.ascontiguousarray(new[:, at].numpy().T)
        pinned = None if within is None else within[:, at]
        chosen, errors = _sweep(part, factor[at, at].numpy(), sparsity, pinned)
        new[:, at], kept[:, at] = torch.from_numpy(part).T, chosen
        new[:, at.stop :].addmm_(torch.from_numpy(errors).T, factor[at, at.stop :], alpha=-1)
    return new, kept


def inverse_factor(
    gram: torch.Tensor, damping: float = DAMPING, name: str | None = None
) -> torch.Tensor:
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
        tensor=name,
    )


def _sweep(part: F32, factor: F32, sparsity: Sparsity, within: Bools | None) -> tuple[Bools, F32]:
    """Prune the columns of one block from left to right.

    By numpy: the steps are too small for torch's threads, which wait for each other at every one.

    Args:
        part: the block's columns, one after the other, `[width, out]`; changed in place.
        factor: their part of the upper factor, `[width, width]`.
        sparsity: what to reach.
        within: where weights may stay, `[out, width]`.

    Returns:
        kept positions `[out, width]`, and the errors of the columns `[width, out]`.
    """
    width, out = part.shape
    diagonal = factor.diagonal()
    if within is not None:
        part *= within.T
    kept = np.ones((out, width), dtype=np.bool_)
    if isinstance(sparsity, Unstructured):
        kept = _choose(part, diagonal, Unstructured(sparsity.share, "tensor"), within)
    errors, step = np.zeros_like(part), np.empty_like(part)
    for j in range(width):
        if isinstance(sparsity, NM) and j % sparsity.m == 0:
            group = slice(j, j + sparsity.m)
            pinned = None if within is None else within[:, group]
            kept[:, group] = _choose(part[group], diagonal[group], sparsity, pinned)
        stays = kept[:, j]
        if within is not None:  # updates have filled zeros that are to stay
            part[j] *= within[:, j]
        np.divide(part[j], diagonal[j], out=errors[j], where=~stays)
        np.multiply(factor[j, j:, None], errors[j], out=step[j:])
        part[j:] -= step[j:]
        part[j] *= stays
    return kept, errors


def _choose(part: F32, diagonal: F32, sparsity: Sparsity, within: Bools | None) -> Bools:
    """Kept positions `[out, width]` of columns `[width, out]`."""
    scores = np.square(part / diagonal[:, None]).T
    if within is None:
        return keep(scores, sparsity)
    return keep(np.where(within, scores, np.float32(-1)), sparsity) & within
