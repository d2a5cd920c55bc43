"""Positions where the model itself magnifies rounding: what may be asked of an engine there.

A trained network can build a large activation, cancel it, and hand on what is left; float32 then
settles fewer digits than the tolerance asks for, and two sound engines differ by more than it. The
reference shows where: its logits move as much when each of its roundings is disturbed at random.
At such a position an engine may be off by twice that spread. A wrong weight is not excused by it:
it moves many positions, and at nearly all of them the spread is a hundredth of the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from exporter.contract import Progress, ReferenceSession
from exporter.verify.selftest import SelfTest

FACTOR = 2.0  # engine and reference are both off by it
MOST = 10.0  # times the tolerance, whatever the spread
SHARE = 0.01  # of all positions; where more leave the tolerance, the engine is wrong


def allowed(tolerance: float, spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bound on the relative error of each row, `[T]`: the tolerance, or more where it must be."""
    return np.clip(FACTOR * spread, tolerance, MOST * tolerance)


def spread_of(test: SelfTest, prompt: int, first: int, count: int) -> NDArray[np.float64]:
    """Rows `[first : first + count]` of a prompt; zeros where none was measured."""
    if test.spread is None:
        return np.zeros(count)
    start = test.start(prompt) + first
    return test.spread[start : start + count].astype(np.float64)


def few(count: int, positions: int) -> bool:
    """Whether so many positions may be judged by their spread."""
    return count <= max(1, int(SHARE * positions))


def measured(
    test: SelfTest,
    reference: ReferenceSession,
    prompts: Iterable[int],
    progress: Progress | None = None,
) -> SelfTest:
    """The self-test with the spread of all rows of `prompts`; 0 in the rows of the others."""
    asked = sorted(set(prompts))
    out = np.zeros(test.starts()[-1], dtype=np.float32)
    for done, prompt in enumerate(asked):
        tokens = (*test.prompts.tokens[prompt], *test.greedy[prompt, :-1].tolist())
        start = test.start(prompt)
        out[start : start + len(tokens)] = reference.spread(tokens)
        if progress is not None:
            progress("rounding", done + 1, len(asked))
    return replace(test, spread=out)
