"""What a training method is to the loop: trained tensors, hooks around a step, and a writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import VerificationFailed
from exporter.model import CheckedModel
from exporter.store.dtypes import F32
from harness.methods.options import Training


@dataclass(frozen=True)
class Base:
    """The model that a method is attached to: loaded in float32 and frozen, and its folder."""

    model: Any  # of transformers; methods put their own modules into it
    checked: CheckedModel  # the folder that it was loaded from, with its masks
    training: Training
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # how the masks were made

    @property
    def name(self) -> str:
        """Name of the base, for people: the folder's, or what its config says."""
        recorded = self.checked.checkpoint.config.get("_name_or_path")
        if isinstance(recorded, str) and recorded:
            return recorded
        return self.checked.checkpoint.root.resolve().name

    def generator(self) -> torch.Generator:
        """What initial values are drawn from; a new one gives the same values."""
        return torch.Generator().manual_seed(self.training.seed)


class Adaptation:
    """A method attached to a model. The defaults are those of a plain adapter.

    The loop calls `begin_step`, forward and backward, `penalty`, `after_backward`, the optimiser,
    `after_step`. `state` is what a checkpoint needs beside the trained tensors and the optimiser.
    """

    def __init__(self, model: Any, trained: Mapping[str, nn.Parameter]) -> None:
        self.model = model
        self.trained = dict(trained)

    def groups(self, training: Training) -> list[dict[str, Any]]:
        """Groups of AdamW: `params`, and what differs from the run's options."""
        return [{"params": list(self.trained.values())}]

    def begin_step(self, step: int) -> None:
        """Before the forward of optimiser step `step` (from 0)."""

    def dropped(self) -> list[nn.Parameter]:
        """Parameters whose moments the optimiser is to forget before this step."""
        return []

    def penalty(self) -> Tensor | None:
        """A term that is added to the loss; None for none."""
        return None

    def after_backward(self) -> None:
        """When all gradients of the step are there, before they are clipped."""

    def after_step(self, step: int) -> None:
        """After the optimiser's step, gradients still there."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that the method keeps beside the trained ones."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def verify(self) -> None:
        """Refuse to go on where a step broke the mask.

        Raises:
            VerificationFailed: `training-failed`, with the tensor.
        """

    def write(self, out: Path) -> None:
        """Write the adapter in the exporter's format into `out`, new or empty."""
        raise NotImplementedError

    def measured(self) -> dict[str, Any]:
        """What the report of the run tells of the method, for machines."""
        return {}


def put(model: Any, module: str, new: nn.Module) -> None:
    """Set the submodule with the full name `module`."""
    owner, _, leaf = module.rpartition(".")
    setattr(model.get_submodule(owner), leaf, new)


def as_numpy(values: Tensor) -> F32:
    """A trained tensor as float32 on the CPU, a copy."""
    return np.array(values.detach().float().cpu().numpy(), dtype=np.float32, order="C")


def kept_of(base: Base, linear: Any) -> Tensor:
    """The mask of one linear, bool `[out, in]`."""
    return torch.from_numpy(np.array(base.checked.masks.mask(linear).rows()))


def require_zeros(weight: Tensor, kept: Tensor, name: str) -> None:
    """Every value outside `kept` is zero.

    Raises:
        VerificationFailed: `training-failed`.
    """
    outside = int(torch.count_nonzero(weight.detach().masked_fill(kept, 0.0)))
    if outside:
        raise VerificationFailed(
            "training-failed",
            f"a step broke the mask: {outside} values outside it are not zero",
            expected="zeros wherever the mask prunes",
            tensor=name,
            hint="Report this with the run's train.json; the last checkpoint is whole.",
        )
