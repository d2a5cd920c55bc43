"""Options of a training run. No torch here: the command line's help must come at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[int, float], None]  # (step from 1, loss)


@dataclass(frozen=True)
class Training:
    """How long and how fast; `batch` windows of the text per step.

    The defaults are those of LoSA's public code (weight decay, gradient norm, share of warm-up),
    but for the learning rate: a few dozen steps need a larger one than its 2e-4.
    """

    steps: int = 40
    batch: int = 4
    length: int = 128
    lr: float = 1e-3
    seed: int = 0
    weight_decay: float = 1e-3
    max_norm: float = 0.3
    warmup: float = 0.3


@dataclass(frozen=True)
class Factors:
    """Size of the low-rank factors: the scale is `alpha / rank`."""

    rank: int = 8
    alpha: float = 16.0
