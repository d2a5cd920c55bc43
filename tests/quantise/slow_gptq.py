"""GPTQ as its paper writes it, by the inverse of the Hessian, one column at a time, in float64.

Frantar et al. 2023, algorithm 1 with blocks of one column; pruned positions as SparseGPT's
(section 3.4). Then coordinate descent, by trying the codes themselves.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from tests.quantise import slow

DAMPING = 0.01


def damped(gram: Any) -> Any:
    out = gram.astype(np.float64)
    return out + np.eye(len(out)) * (DAMPING * np.trace(out) / len(out) or 1.0)


def gptq(weight: Any, kept: Any, gram: Any, kind: str, group: int) -> tuple[Any, Any]:
    """Codes `[out, in]` and the scale of each weight `[out, in]`, float64."""
    w = weight.astype(np.float64)
    rows, width = w.shape
    factor = np.linalg.cholesky(np.linalg.inv(damped(gram))).T
    codes, scales = np.zeros(w.shape), np.zeros(w.shape)
    for j in range(width):
        if j % (group or width) == 0:
            ahead = _unrounded(w, kept, factor, j, min(width, j + (group or width)))
            for r in range(rows):
                part = [float(np.float32(x)) for x in ahead[r]]
                scales[r, j : j + (group or width)] = float(slow.scale(part, kind))
        for r in range(rows):
            if kept[r, j]:
                codes[r, j] = _code(w[r, j], scales[r, j], kind)
        error = (w[:, j] - codes[:, j] * scales[:, j]) / factor[j, j]
        w[:, j:] -= np.outer(error, factor[j, j:])
    return codes, scales


def _unrounded(w: Any, kept: Any, factor: Any, c0: int, c1: int) -> Any:
    """The columns of a group as they come if none of them is rounded, only pruned."""
    w = w.copy()
    for j in range(c0, c1):
        error = np.where(kept[:, j], 0.0, w[:, j]) / factor[j, j]
        w[:, j:] -= np.outer(error, factor[j, j:])
    return np.where(kept, w, 0.0)[:, c0:c1]


def _code(value: float, scale: float, kind: str) -> float:
    """Nearest code in reach."""
    top = slow.LARGEST[kind]
    exact = Fraction(value) / Fraction(scale)
    return float(
        slow.code(float(min(max(exact, Fraction(-top)), Fraction(top))), Fraction(1), kind)
    )


def all_codes(kind: str) -> Any:
    top = slow.LARGEST[kind]
    return np.array(slow.FP8_VALUES if kind == "fp8" else range(-top, top + 1), np.float64)


def descend(weight: Any, kept: Any, gram: Any, codes: Any, scales: Any, kind: str, n: int) -> Any:
    """`n` sweeps: each kept code in turn becomes the one of least `e H e^T`, by trying all."""
    h, codes, choices = damped(gram), codes.copy(), all_codes(kind)
    for _ in range(n):
        for r in range(len(codes)):
            for j in np.flatnonzero(kept[r]):
                e = weight[r].astype(np.float64) - codes[r] * scales[r]
                rest = e @ h[:, j] - e[j] * h[j, j]
                tried = weight[r, j].astype(np.float64) - choices * scales[r, j]
                codes[r, j] = choices[np.argmin(tried**2 * h[j, j] + 2 * tried * rest)]
    return codes
