"""SoRA: a LoRA whose ranks have gates that training drives to zero.

Ding et al. 2023 (arXiv 2311.11696; public code `src/lora.py`, `sparse_optimizer.py`):
`y = x W^T + (alpha / r) ((x A^T) . g) B^T`, g from N(0, 1). Gates have an AdamW of their own,
each step of it followed by soft-thresholding (the proximal step of an L1 term).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporter.adapters.sora import write_sora
from harness.methods.base import Adaptation, Base, as_numpy, put
from harness.methods.options import Training


@dataclass(frozen=True)
class SoraSettings:
    """Rank and scale as in LoRA; `threshold` is lambda_2 of the public script.

    `literal` thresholds as that code does: it shrinks by lambda_2 and then zeroes what is below
    lambda_2 again, so all gates below 2 lambda_2 go.
    """

    rank: int = 8
    alpha: float = 16.0
    threshold: float = 3e-4
    penalty: float = 10.0  # times the mean |g|
    literal: bool = False


class SoraLinear(nn.Module):
    """Stands in for a frozen linear."""

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        out, width = linear.weight.shape
        self.inner, self.scale = linear, scale
        start = torch.empty(rank, width).uniform_(-1.0, 1.0, generator=generator) / width**0.5
        self.lora_a = nn.Parameter(start)
        self.lora_b = nn.Parameter(torch.zeros(out, rank))
        self.gate = nn.Parameter(torch.randn(rank, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        low = nn.functional.linear(x, self.lora_a) * (self.gate * self.scale)
        return self.inner(x) + nn.functional.linear(low, self.lora_b)


def soft_threshold(gate: Tensor, bound: float, *, literal: bool) -> Tensor:
    """`sign(g) max(|g| - bound, 0)`; `literal` then zeroes what is left below the bound."""
    shrunk = gate.sign() * (gate.abs() - bound).clamp_min(0.0)
    return (
        torch.where(shrunk.abs() < bound, torch.zeros_like(shrunk), shrunk) if literal else shrunk
    )


class Sora(Adaptation):
    """SoRA on every linear of the blocks."""

    def __init__(self, base: Base, settings: SoraSettings) -> None:
        self._base, self._settings = base, settings
        generator, scale = base.generator(), settings.alpha / settings.rank
        self.layers: dict[str, SoraLinear] = {}
        for linear in base.checked.spec.linears():
            old = cast(nn.Linear, base.model.get_submodule(linear.module))
            new = SoraLinear(old, settings.rank, scale, generator)
            put(base.model, linear.module, new)
            self.layers[linear.module] = new
        trained = {
            f"{name}.{part}": cast(nn.Parameter, getattr(layer, part))
            for name, layer in self.layers.items()
            for part in ("lora_a", "lora_b", "gate")
        }
        super().__init__(base.model, trained)

    def groups(self, training: Training) -> list[dict[str, Any]]:
        """Gates are not decayed: the threshold is what shrinks them."""
        gates = [p for n, p in self.trained.items() if n.endswith(".gate")]
        others = [p for n, p in self.trained.items() if not n.endswith(".gate")]
        return [{"params": others}, {"params": gates, "weight_decay": 0.0}]

    def penalty(self) -> Tensor | None:
        """`penalty` times the mean |g| over all gates."""
        gates = torch.cat([layer.gate for layer in self.layers.values()])
        return self._settings.penalty * gates.abs().mean()

    def after_step(self, step: int) -> None:
        """The proximal step."""
        with torch.no_grad():
            for layer in self.layers.values():
                bound, literal = self._settings.threshold, self._settings.literal
                layer.gate.copy_(soft_threshold(layer.gate, bound, literal=literal))

    def measured(self) -> dict[str, Any]:
        """Ranks that are left, by module."""
        return {"ranks": {n: int((la.gate != 0).sum()) for n, la in self.layers.items()}}

    def write(self, out: Path) -> None:
        """A SoRA folder (docs/formats/sora.md); ranks with a gate of zero stay out."""
        factors = {n: _alive(layer) for n, layer in self.layers.items()}
        settings = self._settings
        write_sora(out, factors, alpha=settings.alpha, r=settings.rank, base_name=self._base.name)


def _alive(layer: SoraLinear) -> Any:
    on = layer.gate.detach() != 0
    if not bool(on.any()):
        on[0] = True  # the format wants a rank; its gate is zero
    return as_numpy(layer.lora_a[on]), as_numpy(layer.lora_b[:, on]), as_numpy(layer.gate[on])
