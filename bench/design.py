"""The order of the runs: interleaved pairs, balanced in blocks of two rounds (ABBA or BAAB).

Interleaving lets slow drift (heat, a neighbour) hit both sides alike; drawing the order at
random and balancing it keeps "always second" from becoming a property of one side
(google/benchmark, docs/random_interleaving.md, reports 40 % less run-to-run variance).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Order = Literal["AB", "BA"]


def paired_order(rounds: int, seed: int) -> tuple[Order, ...]:
    """Which side runs first in each round; in every block of two rounds each side is once."""
    draw = np.random.default_rng(seed)
    order: list[Order] = []
    while len(order) < rounds:
        order.extend(("AB", "BA") if draw.integers(2) == 0 else ("BA", "AB"))
    return tuple(order[:rounds])
