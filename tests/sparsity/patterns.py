"""Random masks of every pattern that the compiler knows, by name: bool `[out, in]`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Make = Callable[[np.random.Generator, int, int], Bools]


def unstructured(density: float) -> Make:
    """Exactly this share kept, anywhere."""

    def make(rng: np.random.Generator, out: int, width: int) -> Bools:
        order = rng.permutation(out * width)
        return (order < round(density * out * width)).reshape(out, width)

    return make


def nm(n: int, m: int) -> Make:
    """Exactly n of each m inputs kept; a ragged last group keeps n, or its width if less."""

    def make(rng: np.random.Generator, out: int, width: int) -> Bools:
        kept = np.zeros((out, width), bool)
        for g in range(0, width, m):
            part = kept[:, g : g + m]
            part[...] = rng.random(part.shape).argsort(axis=1).argsort(axis=1) < n
        return kept

    return make


def mixed(m: int, *choices: int) -> Make:
    """N of one linear drawn from `choices`."""
    return lambda rng, out, width: nm(int(rng.choice(choices)), m)(rng, out, width)


def rows(rng: np.random.Generator, out: int, width: int) -> Bools:
    """Every second output, shuffled, is pruned whole."""
    return np.repeat(rng.permutation(out)[:, None] % 2 == 0, width, axis=1)


def columns(rng: np.random.Generator, out: int, width: int) -> Bools:
    """Every second input, shuffled, is pruned whole."""
    return np.repeat(rng.permutation(width)[None, :] % 2 == 0, out, axis=0)


PATTERNS: dict[str, Make] = {
    "unstructured 50%": unstructured(0.5),
    "unstructured 70%": unstructured(0.3),
    "unstructured 90%": unstructured(0.1),
    "2:4": nm(2, 4),
    "4:8": nm(4, 8),
    "2:8": nm(2, 8),
    "3:16": nm(3, 16),
    "mixed n:8": mixed(8, 1, 2, 3),
    "rows": rows,
    "columns": columns,
}
