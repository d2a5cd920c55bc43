"""Options of the methods that prune and train in turn, LoSA and SWGI. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class IterativeSettings:
    """`iterations` times: rates, masks and sizes anew, then a share of the steps.

    `schedule` cubic: `s_t = s - s (1 - t / T)^3` (Zhu & Gupta); `oneshot`: s from the first time.
    `rates`, `ranks`: what is measured anew, or the same for all blocks. `delta` bounds a rate's
    deviation (None: the public code's table), `beta` is of the importance. `mixed`: an N:M target
    gets rates too, as N of its own for each block; otherwise N:M is the same everywhere.
    """

    iterations: int = 5
    schedule: Literal["cubic", "oneshot"] = "cubic"
    rates: Literal["rmi", "uniform", "angular", "owl", "gradient"] = "rmi"
    ranks: Literal["error", "uniform"] = "error"
    delta: float | None = None
    beta: float = 1.0
    mixed: bool = False


def scheduled(final: float, t: int, iterations: int, schedule: str) -> float:
    """Sparsity of iteration `t` (from 1), LoSA eq. 8."""
    if schedule == "oneshot" or t == iterations:
        return final
    return final - final * (1.0 - t / iterations) ** 3


def shared_out(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole parts that differ by one at most, the larger ones last."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]
