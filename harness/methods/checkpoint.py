"""Checkpoints of a run: tensors in safetensors, the rest in JSON, replaced whole or not at all.

accelerate's `save_state` pickles the optimiser, and a pickle can run code: so ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter.errors import InputRefused
from exporter.store.folder import stage
from exporter.store.jsonio import read_json, write_json
from harness.methods.base import Adaptation

TENSORS, RECORD = "state.safetensors", "config.json"


@dataclass(frozen=True)
class StepStore:
    """The last good checkpoint of one stretch of training, at `folder`."""

    folder: Path

    def exists(self) -> bool:
        """Whether there is one."""
        return (self.folder / RECORD).is_file()

    def save(
        self,
        done: int,
        adaptation: Adaptation,
        optimiser: torch.optim.Optimizer,
        losses: list[float],
    ) -> None:
        """Write the state behind optimiser step `done`; the one before stays until this is whole.

        Raises:
            InputRefused: `output-failed`.
        """
        tensors = {f"p.{n}": p.detach() for n, p in adaptation.trained.items()}
        tensors |= {f"x.{n}": t for n, t in adaptation.state().items()}
        names = {id(p): n for n, p in adaptation.trained.items()}
        for parameter, slots in optimiser.state.items():
            for slot, value in cast(dict[str, Any], slots).items():
                tensors[f"o.{slot}.{names[id(parameter)]}"] = torch.as_tensor(value)
        tensors["rng"] = torch.get_rng_state()
        with stage(self.folder, force=True) as staging:
            plain = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
            save_file(plain, staging.path / TENSORS)
            write_json(staging.path / RECORD, {"done": done, "losses": losses})
            staging.publish()

    def load(self, adaptation: Adaptation, optimiser: torch.optim.Optimizer) -> list[float]:
        """Put everything back; gives the losses of the steps that are done.

        Raises:
            InputRefused: `adapter-shape` where it is not of this run, `input-missing`.
        """
        record = cast(dict[str, Any], read_json(self.folder / RECORD))
        tensors = load_file(self.folder / TENSORS)
        wanted = {f"p.{n}" for n in adaptation.trained}
        if wanted != {n for n in tensors if n.startswith("p.")}:
            raise InputRefused(
                "adapter-shape",
                "the checkpoint holds other tensors than the method trains",
                expected="a checkpoint of the same run",
                file=TENSORS,
            )
        with torch.no_grad():
            for name, parameter in adaptation.trained.items():
                parameter.copy_(tensors[f"p.{name}"])
        adaptation.load_state({n[2:]: t for n, t in tensors.items() if n.startswith("x.")})
        _load_optimiser(tensors, adaptation.trained, optimiser)
        torch.set_rng_state(tensors["rng"])
        return [float(v) for v in record["losses"]]


def _load_optimiser(
    tensors: Mapping[str, Tensor],
    trained: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    for name, value in tensors.items():
        if name.startswith("o."):
            _, slot, owner = name.split(".", 2)
            parameter = trained[owner]
            # AdamW keeps its count of steps on the CPU.
            place = value if slot == "step" else value.to(parameter.device)
            optimiser.state[parameter][slot] = place
