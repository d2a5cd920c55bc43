"""The oracle: values at kept positions of each weight, all of them or as many as a LoRA has.

The upper bound of masked fine-tuning (SHiRA's form, arXiv 2406.13175). The weight itself runs,
with the values in it, so forward and the input's gradient cost what a frozen linear costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from exporter.adapters.shira import write_shira
from harness.methods.base import Adaptation, Base, as_numpy, kept_of, put, require_zeros
from harness.methods.masked import autocast_input, row_blocks


@dataclass(frozen=True)
class OracleSettings:
    """`all` kept positions; or `budget`: as many as a LoRA of `rank` has, drawn or the largest."""

    positions: Literal["all", "random", "magnitude"] = "all"
    rank: int = 8


class SupportFunction(torch.autograd.Function):
    """`apply(x, weight, values, index)`: the weight's output; a gradient at flat `index`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        ctx.save_for_backward(x, weight, values, index)
        return torch.matmul(x, weight.to(x.dtype).t())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """`dy^T x` is formed for a block of rows at a time, and read at the positions."""
        x, weight, values, index = ctx.saved_tensors
        dy = cast(Tensor, grads[0]).reshape(-1, weight.shape[0])
        flat = x.reshape(-1, x.shape[-1])
        dv, width = torch.empty_like(values), weight.shape[1]
        for r in row_blocks(weight):
            ends = torch.tensor([r.start * width, r.stop * width], device=index.device)
            at = torch.searchsorted(index, ends)
            own = slice(int(at[0]), int(at[1]))
            block = torch.mm(dy[:, r].t(), flat).reshape(-1)
            dv[own] = block[index[own] - r.start * width].to(dv.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.mm(dy, weight.to(dy.dtype)).reshape(x.shape)
        return dx, None, dv, None


class SupportLinear(nn.Module):
    """Stands in for a frozen linear; `values` are what is added at `index` (flat, rising)."""

    index: Tensor
    start: Tensor

    def __init__(self, linear: nn.Linear, index: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, cast(nn.Parameter | None, linear.bias)
        self.register_buffer("index", index, persistent=False)
        flat = self.weight.detach().reshape(-1)
        self.register_buffer("start", flat[index].clone(), persistent=False)
        self.values = nn.Parameter(torch.zeros(len(index), dtype=flat.dtype))

    def refresh(self) -> None:
        """Put the values into the weight."""
        with torch.no_grad():
            self.weight.view(-1)[self.index] = self.start + self.values

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        x = autocast_input(x)
        with torch.autocast(x.device.type, enabled=False):
            y = cast(
                Tensor,
                cast(Any, SupportFunction).apply(x, self.weight, self.values, self.index),
            )
        return y if self.bias is None else y + self.bias


class Oracle(Adaptation):
    """Values on the support of every linear of the blocks."""

    def __init__(self, base: Base, settings: OracleSettings) -> None:
        self._base = base
        self.layers: dict[str, SupportLinear] = {}
        self._kept: dict[str, Tensor] = {}
        generator = base.generator()
        for linear in base.checked.spec.linears():
            old = cast(nn.Linear, base.model.get_submodule(linear.module))
            kept = kept_of(base, linear)
            budget = settings.rank * (linear.out_features + linear.in_features)
            index = choose(old.weight.detach(), kept, settings.positions, budget, generator)
            new = SupportLinear(old, index)
            put(base.model, linear.module, new)
            self.layers[linear.module], self._kept[linear.module] = new, kept
        super().__init__(base.model, {f"{n}.values": la.values for n, la in self.layers.items()})

    def after_step(self, step: int) -> None:
        """The weights take the new values."""
        for layer in self.layers.values():
            layer.refresh()

    def load_state(self, state: Any) -> None:
        """The values are back: so are the weights."""
        self.after_step(0)

    def verify(self) -> None:
        """See `Adaptation.verify`."""
        for name, layer in self.layers.items():
            require_zeros(layer.weight, self._kept[name], f"{name}.weight")

    def write(self, out: Path) -> None:
        """A SHiRA folder with any number of values (docs/formats/shira.md)."""
        entries = {n: (_pairs(la), as_numpy(la.values)) for n, la in self.layers.items()}
        write_shira(
            out,
            entries,
            r=None,
            base_name=self._base.name,
            base_sha256=self._base.checked.checkpoint.identity(),
        )


def choose(
    weight: Tensor, kept: Tensor, how: str, budget: int, generator: torch.Generator
) -> Tensor:
    """Flat positions of kept weights, rising, int64: `all`, or at most `budget` of them."""
    support = torch.nonzero(kept.reshape(-1))[:, 0]
    if how == "all" or len(support) <= budget:
        return support
    if how == "random":
        picked = torch.randperm(len(support), generator=generator)[:budget]
    else:
        picked = weight.reshape(-1)[support].abs().topk(budget).indices
    return support[picked.sort().values]


def _pairs(layer: SupportLinear) -> Any:
    index = layer.index.cpu().numpy()
    return np.stack([index // layer.weight.shape[1], index % layer.weight.shape[1]])
