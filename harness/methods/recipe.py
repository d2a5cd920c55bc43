"""What a training run is asked for. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.documents import FIELD
from harness.methods.options import Training
from harness.methods.registry import TrainMethod
from harness.prune.run import Calibration
from harness.prune.sparsity import Sparsity
from harness.text import BUILTIN

RECORD, COST, BASE = "train.json", "cost.json", "base"


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what."""

    method: TrainMethod
    training: Training
    settings: Sequence[str] = ()  # KEY=VALUE of the method
    data: str = BUILTIN
    field: str = FIELD
    sparsity: Sparsity | None = None  # prune to it; None: the model's own masks
    pruner: str = "wanda"
    calibration: Calibration | None = None  # None: 32 windows of the training text
    masks: Path | None = None
