"""Quantisation by its definition, one weight at a time, in exact fractions: the reference."""

from __future__ import annotations

import bisect
from fractions import Fraction

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

LARGEST = {"int8": 127, "int4": 7, "fp8": 448}
# Every positive value of the two small floats, from the types' own tables, in ascending order.
BF16 = [Fraction(float(v)) for v in np.arange(1, 0x7F80, dtype=np.uint16).view(ml_dtypes.bfloat16)]
_FP8 = [Fraction(float(v)) for v in np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)]

FP8_VALUES = sorted({float(s * v) for v in _FP8 for s in (-1, 1)})


def scale(weights: list[float], kind: str) -> Fraction:
    """Smallest bfloat16 at or above max|w| / largest; 1 for zeros."""
    top = max((abs(Fraction(w)) for w in weights), default=Fraction(0))
    if top == 0:
        return Fraction(1)
    return BF16[bisect.bisect_left(BF16, top / LARGEST[kind])]


def code(weight: float, scale_: Fraction, kind: str) -> Fraction:
    """Nearest code, ties to even."""
    exact = Fraction(weight) / scale_
    if kind != "fp8":
        return Fraction(round(exact))  # Python rounds a Fraction's ties to even
    # The even one of two equally near is that with an even last bit, so an even place in the table.
    i = min(range(len(_FP8)), key=lambda i: (abs(abs(exact) - _FP8[i]), i % 2))
    return _FP8[i] if exact > 0 else -_FP8[i]


def quantise(
    weight: NDArray[np.float32], kind: str, group: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Codes `[out, in]`, scales `[out, G]` and `code * scale`, float64."""
    out, width = weight.shape
    step = group or width
    codes, values = np.zeros((out, width)), np.zeros((out, width))
    scales = np.zeros((out, -(-width // step)))
    for r in range(out):
        for g, c0 in enumerate(range(0, width, step)):
            part = [float(w) for w in weight[r, c0 : c0 + step]]
            s = scale(part, kind)
            scales[r, g] = float(s)
            for i, w in enumerate(part):
                q = code(w, s, kind)
                codes[r, c0 + i], values[r, c0 + i] = float(q), float(q * s)
    return codes, scales, values
