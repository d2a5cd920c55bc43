"""LoRS: a low-rank branch under the mask, with the cheap gradient that leaves the mask out.

Hu et al. 2025 (arXiv 2501.08582): forward `y = x (M . (W + s B A))^T`, nothing saved but x, W, A
and B; backward exact in x, and for the factors `dB = s dy^T (x A^T)`, `dA = s (dy B)^T x` in
that order: two thin products where the exact one forms `dy^T x`. Straight-through in the mask.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from harness.methods.masked import MaskedLora, MaskedLoraLinear, input_gradient


class CheapLora(MaskedLora):
    """`apply(x, weight, kept, a, b, scale)`: the forward of `MaskedLora`, another backward."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Exact for x; as if nothing were pruned for a and b."""
        x, weight, kept, a, b = ctx.saved_tensors
        scale: float = ctx.scale
        dy = cast(Tensor, grads[0]).reshape(-1, weight.shape[0])
        flat = x.reshape(-1, x.shape[-1])
        low = a.to(x.dtype)
        db = torch.mm(dy.t(), torch.mm(flat, low.t())).to(b.dtype).mul_(scale)
        da = torch.mm(torch.mm(dy, b.to(x.dtype)).t(), flat).to(a.dtype).mul_(scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None, da, db, None
        dx = input_gradient(dy, weight, kept, a, b, scale)
        return dx.reshape(x.shape), None, None, da, db, None


class LorsLinear(MaskedLoraLinear):
    """`MaskedLoraLinear` with the cheap gradient."""

    function: Any = CheapLora
