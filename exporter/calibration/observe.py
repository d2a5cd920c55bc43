"""Calibration of one export: run the function that the adapter trained, keep what it showed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.adapters.base import Adapter
from exporter.calibration.request import CalibrationRequest
from exporter.calibration.source import read_ids
from exporter.calibration.windows import Windows, choose
from exporter.contract import Calibrator, Progress
from exporter.merge.fuse import fuse
from exporter.merge.workbench import Workbench
from exporter.model import CheckedModel, FusedModel


@dataclass(frozen=True)
class Observed:
    """What calibration measured before anything was merged."""

    windows: Windows
    bench: Workbench  # Gram matrices of the modules observed
    perplexity: float  # of base and adapters unmerged, on the held-out windows


def read_windows(
    request: CalibrationRequest, calibrator: Calibrator, checked: CheckedModel
) -> Windows:
    """The windows of the request's files, tokenised by the model's own tokenizer.

    Raises:
        InputRefused: `data-invalid`, `input-*`, `limit-exceeded`.
        UsageError: `usage`.
    """
    folder, spec = checked.checkpoint.root, checked.spec
    found = [
        read_ids(path, lambda text: calibrator.tokenise(folder, text), spec.vocab)
        for path in request.files
    ]
    return choose(request, found[0], found[1] if found[1:] else None, spec.max_positions)


def observe(
    checked: CheckedModel,
    adapters: Sequence[tuple[Adapter, float]],
    windows: Windows,
    calibrator: Calibrator,
    folder: Path,
    progress: Progress | None = None,
    also: Collection[str] = (),
) -> Observed:
    """Run the model with its adapters unmerged: the inputs are those that training saw.

    The unmerged model is computed as `W + D` with nothing dropped (policy `densify`), which is
    what the adapters' own forward computes; a delta trained under the mask stays under it.

    Args:
        checked: the base.
        adapters: with their weights.
        windows: text as token ids.
        calibrator: runs the model.
        folder: empty; Gram matrices are written there and must stay while `Observed` is used.
        progress: told after each block.
        also: modules to observe beside those that a merge would lose something of.

    Raises:
        InputRefused: `arch-unsupported`, `value-not-finite`, `output-failed`.
    """
    trained = fuse(checked, adapters, "densify")
    bench = Workbench(folder)
    wanted = trained.densified | frozenset(also)
    loss = calibrator.observe(
        trained, windows.ids, windows.held_out, wanted, bench.keep_gram, progress
    )
    return Observed(windows, bench, math.exp(loss))


def perplexity(
    model: FusedModel, windows: Windows, calibrator: Calibrator, progress: Progress | None = None
) -> float:
    """`exp` of the mean loss per predicted token on the held-out windows alone."""
    ids = windows.ids[windows.observed :]
    return math.exp(calibrator.observe(model, ids, len(ids), (), _nothing, progress))


def _nothing(modules: Sequence[str], gram: object, /) -> None:
    del modules, gram
