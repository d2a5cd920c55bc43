"""What every part of a training run is given, and what it leaves for the record."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.contract import Progress
from exporter.model import CheckedModel
from harness.methods.options import Report, Training
from harness.prune.passes import Method
from harness.prune.sparsity import Sparsity
from harness.text import Tokens


@dataclass
class Record:
    """What a run did, for OUT/train.json, and what it cost, for OUT/cost.json."""

    done: dict[str, Any] = field(default_factory=dict[str, Any])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    trainable: int = 0
    optimiser_bytes: int = 0

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Add the time of the block to a phase: rates, masks, ranks, training, writing."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class Context:
    """One run."""

    checked: CheckedModel  # the model as given
    rows: Tokens  # training windows [n, length]
    calibration: Tokens  # windows that masks, rates and errors are measured on
    training: Training
    sparsity: Sparsity | None  # None: the model's own masks
    pruner: Method
    work: Path  # checkpoints and bases of this run
    resume: bool
    report: Report
    progress: Progress | None
    main: bool  # this process writes
    wait: Any  # Callable[[], None]: until all processes are here
    record: Record
