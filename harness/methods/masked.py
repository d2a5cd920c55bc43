"""A linear whose low-rank branch lives under the weight's mask, with the exact gradient.

LoSA equation 1 in its merged form (Huang et al. 2025): `y = x (M . (W + s B A))^T + b`, with M
the mask `[out, in]`, A `[r, in]`, B `[out, r]` and s a fixed scale. With `G = (dy^T x) . M`:
`dB = s G A^T`, `dA = s B^T G`, `dx = dy (M . (W + s B A))`. G and the merged weight are formed
for one block of rows at a time and never kept: memory of a plain linear plus one block.

Under mixed precision the products run in x's type; the merged block is formed in the weight's
and cast, so the mask holds exactly. In float32 on the CPU our own kernels form and multiply in one
go, where they are built (backends/packed/kernels/masked.py); what torch does here says the same.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from backends.packed.kernels.masked import MaskedProducts, available
from backends.packed.kernels.pages import collapse

BLOCK_ELEMENTS = 1 << 20  # of the merged weight in flight


def row_blocks(weight: Tensor) -> list[slice]:
    """Slices of rows of at most `BLOCK_ELEMENTS` values."""
    step = max(1, BLOCK_ELEMENTS // weight.shape[1])
    return [slice(i, min(i + step, len(weight))) for i in range(0, len(weight), step)]


def merged(weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`M . (W + s B A)` of a block of rows."""
    # torch multiplies by uint8 three times as fast as by bool; the bytes are the same.
    return torch.addmm(weight, b, a, alpha=scale).mul_(kept.view(torch.uint8))


def kernels(*tensors: Tensor) -> MaskedProducts | None:
    """Our own kernels, where there are any for these tensors."""
    found = available()
    return found if found and found.takes(*tensors) else None


def forward_masked(
    x: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """`x [..., in]` -> `[..., out]` through the merged weight, block by block."""
    flat = x.reshape(-1, x.shape[-1])
    if fast := kernels(flat, weight, a, b):
        y = fast.forward(flat, weight, kept, a, b, scale)
        return y.reshape(*x.shape[:-1], weight.shape[0])
    y = x.new_empty(flat.shape[0], weight.shape[0])
    for r in row_blocks(weight):
        torch.mm(flat, merged(weight[r], kept[r], a, b[r], scale).to(x.dtype).t(), out=y[:, r])
    return y.reshape(*x.shape[:-1], weight.shape[0])


def input_gradient(
    dy: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """`dx [tokens, in]` of `dy [tokens, out]`, block by block."""
    if fast := kernels(dy, weight, a, b):
        return fast.input_gradient(dy, weight, kept, a, b, scale)
    dx = dy.new_zeros(len(dy), weight.shape[1])
    for r in row_blocks(weight):
        dx.addmm_(dy[:, r], merged(weight[r], kept[r], a, b[r], scale).to(dy.dtype))
    return dx


def factor_gradients(
    x: Tensor, dy: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dA and dB by `x [tokens, in]` and `dy [tokens, out]`, block by block."""
    if fast := kernels(x, dy, weight, a, b):
        return fast.factor_gradients(x, dy, weight, kept, a, b, scale)
    da, db = torch.zeros_like(a), torch.empty_like(b)
    for r in row_blocks(weight):
        g = torch.mm(dy[:, r].t(), x).to(a.dtype).mul_(kept[r].view(torch.uint8))
        torch.mm(g, a.t(), out=db[r])
        da.addmm_(b[r].t(), g)
    return da.mul_(scale), db.mul_(scale)


class MaskedLora(torch.autograd.Function):
    """`apply(x, weight, kept, a, b, scale)`; the gradient flows to x, a and b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, kept: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """`x [..., in]` -> `[..., out]`; `kept` is bool `[out, in]`."""
        ctx.save_for_backward(x, weight, kept, a, b)
        ctx.scale = scale
        return forward_masked(x, weight, kept, a, b, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Exact gradients for x, a and b."""
        x, weight, kept, a, b = ctx.saved_tensors
        scale: float = ctx.scale
        dy = cast(Tensor, grads[0]).reshape(-1, weight.shape[0])
        flat = x.reshape(-1, x.shape[-1])
        da, db = factor_gradients(flat, dy, weight, kept, a, b, scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None, da, db, None
        dx = input_gradient(dy, weight, kept, a, b, scale)
        return dx.reshape(x.shape), None, None, da, db, None


def autocast_input(x: Tensor) -> Tensor:
    """x in the type of mixed precision, where that is on: custom functions cast by hand."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class MaskedLoraLinear(nn.Module):
    """Stands in for a frozen `nn.Linear` on the mask `kept` (bool `[out, in]`).

    A starts uniform within `1 / sqrt(in)` (peft's Kaiming with a = sqrt 5), B at zero, so the
    function is unchanged at the start. `scale` does not depend on the rank: a rank can then grow
    by zero columns of B without a jump.
    """

    kept: Tensor
    function: Any = MaskedLora

    def __init__(
        self, linear: nn.Linear, kept: Tensor, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        out, width = linear.weight.shape
        self.weight = linear.weight
        self.bias = cast(nn.Parameter | None, linear.bias)
        self.scale = scale
        self.register_buffer("kept", kept, persistent=False)
        if kernels(linear.weight):
            collapse(linear.weight, kept)  # the gradient of x visits both by columns
        start = torch.empty(rank, width).uniform_(-1.0, 1.0, generator=generator) / width**0.5
        self.lora_a = nn.Parameter(start.to(linear.weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(out, rank, dtype=linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        x = autocast_input(x)
        with torch.autocast(x.device.type, enabled=False):
            y = cast(
                Tensor,
                self.function.apply(
                    x, self.weight, self.kept, self.lora_a, self.lora_b, self.scale
                ),
            )
        return y if self.bias is None else y + self.bias
