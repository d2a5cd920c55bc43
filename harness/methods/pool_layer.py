"""A linear with a pooling adapter: a small table, constant on blocks of the weight.

SWGI ("Mitigating Gradient Interference for Efficient Sparse Fine-Tuning of LLMs", OpenReview
53MDeiZ9mC): pool the inputs in groups, multiply by G `[gout, gin]`, expand to the outputs. As a
weight it is `D_ij = C[a(i), b(j)]`, `C = s norm(G) / w`. Three ways to train it on a mask M:
`exact` `y = x (M . (W + D))^T` with its gradient; `ste` the same forward, the gradient of an
unmasked D; `none` `y = x (M . W)^T + x D^T`, the setting in which gradients interfere.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from exporter.adapters.pool_groups import Grouping, group_of, group_sizes
from exporter.adapters.pool_norm import Norm
from harness.methods.masked import autocast_input, row_blocks

TrainMask = Literal["exact", "ste", "none"]


class PoolFunction(torch.autograd.Function):
    """`apply(x, weight, kept, table, a, b, exact)`; the gradient flows to x and the table."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, kept: Tensor, table: Tensor, a: Tensor, b: Tensor,
        exact: bool,
    ) -> Tensor:  # fmt: skip
        """`x [..., in]` -> `[..., out]`."""
        ctx.save_for_backward(x, weight, kept, table, a, b)
        ctx.exact = exact
        flat = x.reshape(-1, x.shape[-1])
        y = x.new_empty(flat.shape[0], len(weight))
        wide = table.index_select(1, b)
        for r in row_blocks(weight):
            torch.mm(flat, _pooled(weight[r], kept[r], wide, a[r]).to(x.dtype).t(), out=y[:, r])
        return y.reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Exact for x; for the table exact or as if nothing were pruned."""
        x, weight, kept, table, a, b = ctx.saved_tensors
        dy = cast(Tensor, grads[0]).reshape(-1, len(weight))
        flat = x.reshape(-1, x.shape[-1])
        wide = table.index_select(1, b)
        dx = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        sums = torch.zeros_like(wide)  # of G over the rows of each group
        for r in row_blocks(weight):
            dyr = dy[:, r]
            if ctx.exact:
                g = torch.mm(dyr.t(), flat).to(table.dtype).mul_(kept[r].view(torch.uint8))
                sums.index_add_(0, a[r], g)
            if dx is not None:
                dx.addmm_(dyr, _pooled(weight[r], kept[r], wide, a[r]).to(dy.dtype))
        if ctx.exact:
            dc = torch.zeros_like(table).index_add_(1, b, sums)
        else:
            dc = torch.mm(pooled_sum(dy, a, len(table)).t(), pooled_sum(flat, b, table.shape[1]))
        out = None if dx is None else dx.reshape(x.shape)
        return out, None, None, dc.to(table.dtype), None, None, None


def _pooled(weight: Tensor, kept: Tensor, wide: Tensor, a: Tensor) -> Tensor:
    return wide.index_select(0, a).add_(weight).mul_(kept.view(torch.uint8))


def pooled_sum(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sum of `x [n, d]` over the positions of each group, `[n, groups]`."""
    return x.new_zeros(len(x), groups).index_add(1, group, x)


def normalised(g: Tensor, norm: Norm, tau: float, eps: float, gamma: Tensor | None) -> Tensor:
    """The normalisers of `exporter.adapters.pool_norm`, differentiable."""
    if norm in ("none", "wd"):
        return g
    if norm == "maxnorm":
        return g * (tau / g.norm().clamp_min(1e-30)).clamp_max(1.0)
    if norm == "spectral":
        return g * (tau / torch.linalg.matrix_norm(g, 2).clamp_min(1e-30)).clamp_max(1.0)
    length = g.norm() if norm == "fro" else g.norm(dim=1, keepdim=True)
    scale = cast(Tensor, gamma)
    return g * ((scale if norm == "fro" else scale[:, None]) / (length + eps))


class PoolLinear(nn.Module):
    """Stands in for a frozen linear.

    G starts at zero; with `fro` and `row` gamma does instead and G from N(0, 1), since a norm of
    zero has no direction. Either way the function is unchanged at the start.
    """

    kept: Tensor
    row_group: Tensor
    column_group: Tensor
    weights: Tensor

    def __init__(
        self, linear: nn.Linear, kept: Tensor, sizes: tuple[int, int], *, pool: str,
        grouping: Grouping, scale: float, norm: Norm, tau: float, mode: TrainMask,
        generator: torch.Generator, eps: float = 1e-12,
    ) -> None:  # fmt: skip
        super().__init__()
        (out, width), (gout, gin) = linear.weight.shape, sizes
        self.weight, self.bias = linear.weight, cast(nn.Parameter | None, linear.bias)
        self.norm: Norm = norm
        self.scale, self.tau, self.eps, self.mode = scale, tau, eps, mode
        columns = group_of(width, gin, grouping)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer(
            "row_group", torch.from_numpy(group_of(out, gout, grouping)), persistent=False
        )
        self.register_buffer("column_group", torch.from_numpy(columns), persistent=False)
        held = torch.from_numpy(group_sizes(columns, gin)).float()
        divide = held if pool == "mean" else torch.ones_like(held)
        self.register_buffer("weights", divide, persistent=False)
        learned = norm in ("fro", "row")
        start = torch.randn(gout, gin, generator=generator) if learned else torch.zeros(gout, gin)
        self.g = nn.Parameter(start)
        gamma = torch.zeros(1 if norm == "fro" else gout) if learned else None
        self.gamma = None if gamma is None else nn.Parameter(gamma)

    def table(self) -> Tensor:
        """C `[gout, gin]`, differentiable in G and gamma."""
        made = normalised(self.g, self.norm, self.tau, self.eps, self.gamma)
        return made * self.scale / self.weights

    def delta(self) -> Tensor:
        """D `[out, in]`, without mask and gradient."""
        with torch.no_grad():
            return self.table()[self.row_group].index_select(1, self.column_group)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`."""
        x = autocast_input(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self._apart(x) if self.mode == "none" else self._merged(x)
        return y if self.bias is None else y + self.bias

    def _merged(self, x: Tensor) -> Tensor:
        groups = (self.row_group, self.column_group)
        arguments = (x, self.weight, self.kept, self.table(), *groups, self.mode == "exact")
        return cast(Tensor, cast(Any, PoolFunction).apply(*arguments))

    def _apart(self, x: Tensor) -> Tensor:
        table = self.table().to(x.dtype)
        low = pooled_sum(x.reshape(-1, x.shape[-1]), self.column_group, table.shape[1])
        z = torch.mm(low, table.t()).index_select(1, self.row_group)
        return torch.matmul(x, self.weight.to(x.dtype).t()) + z.reshape(*x.shape[:-1], -1)
