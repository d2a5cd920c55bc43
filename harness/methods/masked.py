"""A linear whose low-rank branch lives under the weight's mask, with the exact gradient.

LoSA equation 1 in its merged form (Huang et al. 2025): `y = x (M . (W + s B A))^T + b`, with M
the mask `[out, in]`, A `[r, in]`, B `[out, r]` and s a fixed scale. With `G = (dy^T x) . M`:
`dB = s G A^T`, `dA = s B^T G`, `dx = dy (M . (W + s B A))`. G and the merged weight are formed
for one block of rows at a time and never kept: memory of a plain linear plus one block.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

BLOCK_ELEMENTS = 1 << 20  # of the merged weight in flight


def _blocks(weight: Tensor) -> range:
    return range(0, weight.shape[0], max(1, BLOCK_ELEMENTS // weight.shape[1]))


def _merged(weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    # torch multiplies by uint8 three times as fast as by bool; the bytes are the same.
    return torch.addmm(weight, b, a, alpha=scale).mul_(kept.view(torch.uint8))


class MaskedLora(torch.autograd.Function):
    """`apply(x, weight, kept, a, b, scale)`; the gradient flows to x, a and b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """`x [..., in]` -> `[..., out]`; `kept` is bool `[out, in]`."""
        ctx.save_for_backward(x, weight, kept, a, b)
        ctx.scale = scale
        flat = x.reshape(-1, x.shape[-1])
        y = x.new_empty(flat.shape[0], weight.shape[0])
        blocks = _blocks(weight)
        for r0 in blocks:
            r = slice(r0, r0 + blocks.step)
            torch.mm(flat, _merged(weight[r], kept[r], a, b[r], scale).t(), out=y[:, r])
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Exact gradients for x, a and b."""
        x, weight, kept, a, b = ctx.saved_tensors
        scale: float = ctx.scale
        dy = cast(Tensor, grads[0]).reshape(-1, weight.shape[0])
        flat = x.reshape(-1, x.shape[-1])
        dx = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        da, db = torch.zeros_like(a), torch.empty_like(b)
        blocks = _blocks(weight)
        for r0 in blocks:
            r = slice(r0, r0 + blocks.step)
            dyr = dy[:, r]
            g = torch.mm(dyr.t(), flat).mul_(kept[r].view(torch.uint8))
            torch.mm(g, a.t(), out=db[r])
            da.addmm_(b[r].t(), g)
            if dx is not None:
                dx.addmm_(dyr, _merged(weight[r], kept[r], a, b[r], scale))
        out = None if dx is None else dx.reshape(x.shape)
        return out, None, None, da.mul_(scale), db.mul_(scale), None


class MaskedLoraLinear(nn.Module):
    """Stands in for a frozen `nn.Linear` on the mask `kept` (bool `[out, in]`).

    A starts uniform within `1 / sqrt(in)` (peft's Kaiming with a = sqrt 5), B at zero, so the
    function is unchanged at the start. `scale` does not depend on the rank: a rank can then grow
    by zero columns of B without a jump.
    """

    kept: Tensor

    def __init__(
        self, linear: nn.Linear, kept: Tensor, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        out, width = linear.weight.shape
        self.weight = linear.weight
        self.bias = cast(nn.Parameter | None, linear.bias)
        self.scale = scale
        self.register_buffer("kept", kept, persistent=False)
        start = torch.empty(rank, width).uniform_(-1.0, 1.0, generator=generator) / width**0.5
        self.lora_a = nn.Parameter(start.to(linear.weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(out, rank, dtype=linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        y = cast(
            Tensor,
            cast(Any, MaskedLora).apply(
                x, self.weight, self.kept, self.lora_a, self.lora_b, self.scale
            ),
        )
        return y if self.bias is None else y + self.bias
