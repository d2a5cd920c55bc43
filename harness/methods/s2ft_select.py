"""Which heads and channels S2FT trains: counts per layer, and the choice within a layer.

Strategies of the paper's table: R random, W weight norm, A activation, S their product, G
gradient, each from the large or the small end. For FFN channel c: W = |Wd[:, c]|, A = mean
|h_c|, S = W A, G = mean |dL/dWd[:, c]|; a head's score is the sum over its channels.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exporter.errors import UsageError

Strategy = Literal["R", "W", "A", "S", "G"]
Allocation = Literal["uniform", "joint", "increasing", "decreasing"]
Scores = NDArray[np.float64]


def counts(ratio: float, layers: int, places: int, how: Allocation) -> list[int]:
    """How many of `places` each layer trains; `int(ratio * layers * places)` in all.

    `uniform` spreads the rest over the first layers; `increasing` and `decreasing` are linear
    in depth. ("joint" has no counts: it draws from all layers at once.)

    Raises:
        UsageError: `usage` for a ratio outside 0 to 1.
    """
    if not 0.0 <= ratio <= 1.0:
        raise UsageError("usage", f"a ratio of {ratio}", expected="a share from 0 to 1")
    total = int(ratio * layers * places + 1e-9)
    weights = np.ones(layers)
    if how in ("increasing", "decreasing"):
        weights = np.arange(1, layers + 1, dtype=np.float64)
        weights = weights if how == "increasing" else weights[::-1]
    found = np.zeros(layers, np.int64)
    # Filled from the most owed layer, a whole place at a time, never past what a layer has.
    owed = total * weights / weights.sum()
    found = np.minimum(np.floor(owed).astype(np.int64), places)
    while found.sum() < total:
        room = np.where(found < places, owed - found, -np.inf)
        found[int(np.argmax(room))] += 1
    return found.tolist()


def draw_joint(
    wanted: Sequence[tuple[str, float, int]], layers: int, seed: int
) -> dict[str, list[list[int]]]:
    """The public code's draw: `random.sample` over all layers at once, one generator for all.

    Args:
        wanted: (name, ratio, places per layer), in the order drawn: v, o, u, d.
        layers: of the model.
        seed: of Python's generator.
    """
    rng = random.Random(seed)
    found: dict[str, list[list[int]]] = {}
    for name, ratio, places in wanted:
        picked = sorted(rng.sample(range(layers * places), int(ratio * layers * places + 1e-9)))
        found[name] = [[p % places for p in picked if p // places == i] for i in range(layers)]
    return found


def pick(
    scores: Scores | None, count: int, largest: bool, rng: np.random.Generator, places: int
) -> list[int]:
    """`count` places of a layer, rising: by score, ties to the lower index; at random without."""
    if scores is None:
        return sorted(rng.permutation(places)[:count].tolist())
    order = np.argsort(-scores if largest else scores, kind="stable")
    return sorted(order[:count].tolist())


def combine(strategy: Strategy, parts: Mapping[str, Scores]) -> Scores | None:
    """Scores of one layer's channels from `weight`, `activation` and `gradient`; None for R."""
    if strategy == "R":
        return None
    if strategy == "S":
        return parts["weight"] * parts["activation"]
    return parts[{"W": "weight", "A": "activation", "G": "gradient"}[strategy]]


def widen(heads: Sequence[int], head_dim: int) -> list[int]:
    """Channels of whole heads, rising."""
    return [h * head_dim + i for h in sorted(heads) for i in range(head_dim)]
