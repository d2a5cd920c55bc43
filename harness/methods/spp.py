"""SPP: each weight times a factor of its row and one of its column, so zeros stay zeros.

Lu et al. 2024 (arXiv 2405.16057; public code `peft/src/peft/tuners/lora.py`):
`W' = W . (1 + s rep(a) c)`, a `[16, in]`, c `[out, 1]`, row i takes row `16 i // out` of a.
That code multiplies apart and has dropout 0.05 on the branch; here it is one product on the
merged weight, so there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporter.adapters.spp import write_spp
from exporter.errors import InputRefused
from harness.methods.base import Adaptation, Base, as_numpy, put
from harness.methods.masked import autocast_input

ROWS = 16


@dataclass(frozen=True)
class SppSettings:
    """The scale is `alpha / r`; a has 16 rows whatever r is, as in the public code."""

    alpha: float = 16.0
    r: int = 8


class SppFunction(torch.autograd.Function):
    """`apply(x, weight, a, c, scale)`, one of the 16 groups of rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, c: Tensor, scale: float) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        ctx.save_for_backward(x, weight, a, c)
        ctx.scale = scale
        flat = x.reshape(-1, x.shape[-1])
        y = x.new_empty(flat.shape[0], len(weight))
        for group, r in _groups(weight):
            torch.mm(flat, _scaled(weight[r], a[group], c[r], scale).to(x.dtype).t(), out=y[:, r])
        return y.reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Exact gradients for x, a and c."""
        x, weight, a, c = ctx.saved_tensors
        scale: float = ctx.scale
        dy = cast(Tensor, grads[0]).reshape(-1, len(weight))
        flat = x.reshape(-1, x.shape[-1])
        dx = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        da, dc = torch.empty_like(a), torch.empty_like(c)
        for group, r in _groups(weight):
            g = torch.mm(dy[:, r].t(), flat).to(a.dtype).mul_(weight[r])
            torch.mv(g.t(), c[r, 0], out=da[group])
            torch.mv(g, a[group], out=dc[r, 0])
            if dx is not None:
                dx.addmm_(dy[:, r], _scaled(weight[r], a[group], c[r], scale).to(dy.dtype))
        out = None if dx is None else dx.reshape(x.shape)
        return out, None, da.mul_(scale), dc.mul_(scale), None


def _groups(weight: Tensor) -> list[tuple[int, slice]]:
    size = len(weight) // ROWS
    return [(g, slice(g * size, (g + 1) * size)) for g in range(ROWS)]


def _scaled(weight: Tensor, a: Tensor, c: Tensor, scale: float) -> Tensor:
    return torch.outer(c[:, 0] * scale, a).add_(1.0).mul_(weight)


class SppLinear(nn.Module):
    """Stands in for a frozen linear whose outputs 16 divides."""

    def __init__(self, linear: nn.Linear, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        out, width = linear.weight.shape
        self.weight, self.bias = linear.weight, cast(nn.Parameter | None, linear.bias)
        self.scale = scale
        start = torch.empty(ROWS, width).uniform_(-1.0, 1.0, generator=generator) / width**0.5
        self.a = nn.Parameter(start)
        self.c = nn.Parameter(torch.zeros(out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        x = autocast_input(x)
        with torch.autocast(x.device.type, enabled=False):
            y = cast(
                Tensor,
                cast(Any, SppFunction).apply(x, self.weight, self.a, self.c, self.scale),
            )
        return y if self.bias is None else y + self.bias


class Spp(Adaptation):
    """SPP on every linear of the blocks.

    Raises:
        InputRefused: `adapter-shape` for a linear whose outputs 16 does not divide.
    """

    def __init__(self, base: Base, settings: SppSettings) -> None:
        self._base, self._settings = base, settings
        generator, scale = base.generator(), settings.alpha / settings.r
        self.layers: dict[str, SppLinear] = {}
        for linear in base.checked.spec.linears():
            if linear.out_features % ROWS:
                raise InputRefused(
                    "adapter-shape",
                    f"{linear.out_features} outputs",
                    expected="a multiple of 16: the method is not defined otherwise",
                    tensor=linear.module,
                    hint="Train another method on this model.",
                )
            old = cast(nn.Linear, base.model.get_submodule(linear.module))
            new = SppLinear(old, scale, generator)
            put(base.model, linear.module, new)
            self.layers[linear.module] = new
        trained = {
            f"{name}.{part}": cast(nn.Parameter, getattr(layer, part))
            for name, layer in self.layers.items()
            for part in ("a", "c")
        }
        super().__init__(base.model, trained)

    def write(self, out: Path) -> None:
        """An SPP folder (docs/formats/spp.md)."""
        factors = {n: (as_numpy(la.a), as_numpy(la.c)) for n, la in self.layers.items()}
        write_spp(
            out,
            factors=factors,
            alpha=self._settings.alpha,
            r=self._settings.r,
            base_name=self._base.name,
            base_sha256=self._base.checked.checkpoint.identity(),
        )
