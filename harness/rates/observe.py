"""Importance of every decoder block from calibration text, in passes over the dense model.

Plug-ins, all "more is more important": a new one is a name here and a branch in `_Observer`.

- `rmi`: LoSA eq. 4, see `harness.rates.rmi`.
- `angular`: mean angle between what goes into the block and what comes out, in units of pi (the
  angular distance of Gromov et al. 2024).
- `owl`: share of Wanda scores above 5 times their linear's mean (OWL, Yin et al. 2024, eq. 1).
- `gradient`: mean of `(w g)^2` over the block's weights, g the gradient of each sequence (the
  diagonal empirical Fisher information, as of first-order Taylor pruning).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from backends.calibration.blocks import BlockStream
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from harness.prune.gradients import block_squares
from harness.prune.stream import input_norms, require_finite
from harness.rates.cka import F64, gram, linear_cka
from harness.rates.names import IMPORTANCES
from harness.rates.rmi import rmi_importance
from harness.text import Tokens

OUTLIER = 5.0  # times the mean: OWL's M


def importances(
    model: CheckedModel,
    tokens: Tokens,
    names: Collection[str],
    folder: Path,
    *,
    beta: float = 1.0,
    progress: Progress | None = None,
) -> dict[str, F64]:
    """Importance `[layers]` by each of `names` (of `IMPORTANCES`).

    Args:
        model: checked.
        tokens: calibration windows `[n, length]`.
        names: which.
        folder: an empty folder on disk for what does not fit in memory.
        beta: of RMI.
        progress: told after each block.

    Raises:
        InputRefused: `data-invalid` where RMI gets a single window.
        VerificationFailed: `values-not-finite`.
    """
    found: dict[str, F64] = {}
    forward = [name for name in names if name != "gradient"]
    if forward:
        found |= _forward(model, tokens, forward, beta, progress)
    if "gradient" in names:
        rows = np.zeros(model.spec.layers)
        for index, squares in block_squares(model, tokens, folder, progress):
            pairs = squares.values()
            total = sum(float((w.double().square() * g).sum()) for w, g in pairs)
            rows[index] = total / sum(w.numel() for w, _ in pairs)
        found["gradient"] = rows
    return {name: found[name] for name in IMPORTANCES if name in found}


@dataclass
class _Observer:
    names: Collection[str]
    grams: list[F64] = field(default_factory=list[F64])
    angles: list[float] = field(default_factory=list[float])
    outliers: list[float] = field(default_factory=list[float])

    def before(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Hidden states `[n, length, hidden]` before a block; a copy where it is needed after."""
        if "rmi" in self.names:
            self.grams.append(gram(hidden.numpy()))
        return hidden.clone() if "angular" in self.names else None

    def after(self, before: torch.Tensor | None, hidden: torch.Tensor) -> None:
        """Those after it."""
        if before is not None:
            cosine = nn.functional.cosine_similarity(before, hidden, dim=-1)
            angle = torch.arccos(cosine.double().clamp(-1, 1)).mean()
            self.angles.append(float(angle) / np.pi)

    def block(self, modules: dict[str, nn.Linear], norms: dict[str, torch.Tensor]) -> None:
        """The block's linears with the norms of their inputs."""
        above = total = 0
        for name, module in modules.items():
            scores = module.weight.detach().abs() * norms[name]
            above += int((scores > OUTLIER * scores.mean()).sum())
            total += scores.numel()
        self.outliers.append(above / total)

    def results(self, beta: float) -> dict[str, F64]:
        """What was observed, by name."""
        found = {"angular": np.asarray(self.angles), "owl": np.asarray(self.outliers)}
        if self.grams:
            found["rmi"] = rmi_importance(linear_cka(self.grams), beta)
        return {name: rows for name, rows in found.items() if name in self.names}


def _forward(
    model: CheckedModel,
    tokens: Tokens,
    names: Collection[str],
    beta: float,
    progress: Progress | None,
) -> dict[str, F64]:
    stream = BlockStream(fuse(model, []), tokens)
    seen = _Observer(names)
    for index in range(model.spec.layers):
        stream.load(index)
        inside = [li.module for li in model.spec.linears() if li.layer == index]
        modules = {name: cast(nn.Linear, stream.module(name)) for name in inside}
        before = seen.before(stream.hidden)
        norms = input_norms(modules, lambda at=index: stream.run(at, 0, len(tokens), advance=True))
        require_finite(stream.hidden, "layer rates", f"output of block {index}")
        seen.after(before, stream.hidden)
        if "owl" in names:
            seen.block(modules, norms)
        stream.drop(index)
        if progress is not None:
            progress(f"rates {index + 1}", index + 1, model.spec.layers)
    return seen.results(beta)
