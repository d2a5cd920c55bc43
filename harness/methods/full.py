"""Full fine-tuning and LISA: the model's own weights, gradients masked on a sparse base.

LISA: Pan et al. 2024 (arXiv 2403.17919; LMFlow, `pipeline/utils/lisa_trainer.py`): embedding,
final norm and head train all the time, and of the decoder's blocks a few drawn at random, drawn
anew every `interval` steps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import UsageError
from harness.methods.base import Adaptation, Base, as_numpy, kept_of, require_zeros
from harness.methods.folder import write_model


@dataclass(frozen=True)
class FullSettings:
    """Nothing to choose: every weight trains."""


@dataclass(frozen=True)
class LisaSettings:
    """`blocks` of the decoder train for `interval` steps, then others."""

    blocks: int = 2
    interval: int = 20
    keep_moments: bool = False  # of frozen blocks; else AdamW starts anew when they return


class FullTuning(Adaptation):
    """All parameters; a linear with a mask gets gradients on its kept weights only."""

    def __init__(self, base: Base) -> None:
        self._base = base
        base.model.requires_grad_(True)
        linears = {linear.weight: linear for linear in base.checked.spec.linears()}
        trained: dict[str, nn.Parameter] = dict(base.model.named_parameters())
        self._kept: dict[str, Tensor] = {}
        for name, linear in linears.items():
            if base.checked.patterns[linear.module].pattern.kind != "dense":
                self._kept[name] = kept_of(base, linear)
        super().__init__(base.model, trained)

    def after_backward(self) -> None:
        """No gradient outside the masks."""
        for name, kept in self._kept.items():
            grad = self.trained[name].grad
            if grad is not None:
                grad.mul_(kept.view(torch.uint8))

    def verify(self) -> None:
        """See `Adaptation.verify`."""
        for name, kept in self._kept.items():
            require_zeros(self.trained[name], kept, name)

    def write(self, out: Path) -> None:
        """The whole model in float32, with masks (docs/formats/full.md)."""
        checked = self._base.checked
        state = {n: as_numpy(p) for n, p in self.trained.items()}
        if checked.head_is_tied:  # a folder may hold the head a second time
            state[checked.spec.head] = state[checked.spec.embedding]
        write_model(checked, out, state)


class Lisa(FullTuning):
    """LISA.

    Raises:
        UsageError: `usage` for more blocks than there are.
    """

    def __init__(self, base: Base, settings: LisaSettings) -> None:
        super().__init__(base)
        count = base.checked.spec.layers
        if not 1 <= settings.blocks <= count:
            raise UsageError("usage", f"blocks={settings.blocks}", expected=f"1 to {count}")
        self._settings, self._count = settings, count
        self.active: tuple[int, ...] = ()
        inside = {linear.weight: linear.layer for linear in base.checked.spec.linears()}
        # A block's norms and biases have the prefix that its linears share.
        prefixes = {i: _prefix([n for n, at in inside.items() if at == i]) for i in range(count)}
        self._blocks = {
            i: [p for n, p in self.trained.items() if n.startswith(prefix)]
            for i, prefix in prefixes.items()
        }
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """Draw the blocks of this interval; a function of seed and step, so a run resumes."""
        turn = step // self._settings.interval
        rng = np.random.default_rng([self._base.training.seed, turn])
        drawn = tuple(sorted(rng.permutation(self._count)[: self._settings.blocks].tolist()))
        if drawn == self.active:
            return
        self.active = drawn
        for index, parameters in self._blocks.items():
            for parameter in parameters:
                parameter.requires_grad_(index in drawn)
                if index not in drawn:
                    parameter.grad = None

    def dropped(self) -> list[nn.Parameter]:
        """Parameters whose moments are to be dropped now."""
        if self._settings.keep_moments:
            return []
        return [p for i, ps in self._blocks.items() if i not in self.active for p in ps]

    def measured(self) -> dict[str, Any]:
        """What LISA does with the optimiser, and the last blocks."""
        return {"keep_moments": self._settings.keep_moments, "last_blocks": list(self.active)}


def _prefix(names: list[str]) -> str:
    return os.path.commonprefix(names).rpartition(".")[0] + "."


def full(base: Base, settings: FullSettings) -> FullTuning:
    """Full fine-tuning."""
    return FullTuning(base)


def lisa(base: Base, settings: LisaSettings) -> Lisa:
    """LISA."""
    return Lisa(base, settings)
