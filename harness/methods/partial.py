"""A linear of which a few input columns or output rows train: S2FT's partial back-propagation.

Yang et al. 2024 (arXiv 2412.06289): `cols`: `y = x W^T + x[:, idx] V^T`, `dV = dy^T x[:, idx]`;
`rows`: `y[:, idx] += x V^T`, `dV = dy[:, idx]^T x`; `dx = dy (W + scatter V)`. V lies in W while
training runs, so that forward and dx are those of a frozen linear and the only extra product is
the thin one of dV. Of x, `cols` keeps k columns for the backward and no more.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from harness.methods.masked import autocast_input

Kind = Literal["cols", "rows"]


class PartialFunction(torch.autograd.Function):
    """`apply(x, weight, delta, index, kept, kind)`; the gradient flows to x and delta."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        delta: Tensor,
        index: Tensor,
        kept: Tensor | None,
        kind: Kind,
    ) -> Tensor:
        """`x [..., in]` -> `[..., out]`; `weight` holds `delta` already."""
        seen = x.index_select(-1, index) if kind == "cols" else x
        ctx.save_for_backward(seen, weight, index, kept)
        ctx.kind, ctx.delta_dtype, ctx.lead = kind, delta.dtype, x.shape[:-1]
        return torch.matmul(x, weight.to(x.dtype).t())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """The gradient of the trained slice, masked where there is a mask, and of x."""
        seen, weight, index, kept = ctx.saved_tensors
        dy = cast(Tensor, grads[0]).reshape(-1, weight.shape[0])
        flat = seen.reshape(-1, seen.shape[-1])
        pushed = dy if ctx.kind == "cols" else dy.index_select(1, index)
        dv = torch.mm(pushed.t(), flat).to(ctx.delta_dtype)
        if kept is not None:
            dv.mul_(kept.view(torch.uint8))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.mm(dy, weight.to(dy.dtype)).reshape(*ctx.lead, weight.shape[1])
        return dx, None, dv, None, None, None


class PartialLinear(nn.Module):
    """Stands in for a frozen linear.

    Args:
        linear: the frozen one; its weight is written to.
        index: input columns or output rows that train, rising, int64 `[k]`.
        kind: which of the two.
        kept: the base's mask `[out, in]`, or None for a dense base.
    """

    index: Tensor
    start: Tensor
    kept: Tensor | None

    def __init__(self, linear: nn.Linear, index: Tensor, kind: Kind, kept: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, cast(nn.Parameter | None, linear.bias)
        self.kind: Kind = kind
        axis = 1 if kind == "cols" else 0
        begin = self.weight.detach().index_select(axis, index)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("start", begin, persistent=False)
        part = None if kept is None else kept.index_select(axis, index).contiguous()
        self.register_buffer("kept", part, persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(begin))

    def refresh(self) -> None:
        """Put V into the weight: `W0 + V` at the slice, taken of W0 each time, so without drift."""
        with torch.no_grad():
            axis = 1 if self.kind == "cols" else 0
            self.weight.index_copy_(axis, self.index, self.start + self.delta)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        x = autocast_input(x)
        with torch.autocast(x.device.type, enabled=False):
            y = cast(
                Tensor,
                cast(Any, PartialFunction).apply(
                    x, self.weight, self.delta, self.index, self.kept, self.kind
                ),
            )
        return y if self.bias is None else y + self.bias
