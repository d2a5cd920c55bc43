"""Options of a training run. No torch here: the command line's help must come at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Report = Callable[[int, float], None]  # (step from 1, loss)


@dataclass(frozen=True)
class Training:
    """How long and how fast; `batch` windows of the text per optimiser step, over all processes.

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
    accumulate: int = 1  # parts that a step's windows are run in: less memory, same gradient
    precision: Literal["no", "bf16"] = "no"  # of the products; weights stay float32
    save_every: int = 100  # optimiser steps between checkpoints; 0: none
