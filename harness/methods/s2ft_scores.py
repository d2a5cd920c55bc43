"""What S2FT's strategies W, A, S and G measure, per channel of each trained axis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from exporter.arch.model_spec import Linear
from harness.methods.base import Base
from harness.methods.s2ft_select import Scores, Strategy
from harness.text import Tokens

# The axis that is trained: the channels of these linears' inputs, or of their outputs.
COLS = ("o", "down")
ROWS = ("v", "up", "gate")


def channel_scores(
    base: Base, linears: list[Linear], strategy: Strategy, rows: Tokens
) -> dict[str, dict[str, Scores]]:
    """`weight`, and where `strategy` wants them `activation` and `gradient`, by module.

    Args:
        base: its model is run on `rows` for A, S and G.
        linears: those that are scored.
        strategy: what is asked for.
        rows: windows of token ids `[n, length]`.
    """
    modules = {li.module: cast(nn.Linear, base.model.get_submodule(li.module)) for li in linears}
    axis = {li.module: 0 if li.role in COLS else 1 for li in linears}
    parts: dict[str, dict[str, Scores]] = {
        name: {"weight": _numpy(module.weight.detach().double().norm(dim=axis[name]))}
        for name, module in modules.items()
    }
    if strategy in ("A", "S"):
        for name, value in _activations(base.model, modules, axis, rows).items():
            parts[name]["activation"] = value
    if strategy == "G":
        for name, value in _gradients(base.model, modules, axis, rows).items():
            parts[name]["gradient"] = value
    return parts


def _activations(
    model: Any, modules: dict[str, nn.Linear], axis: dict[str, int], rows: Tokens
) -> dict[str, Scores]:
    sums: dict[str, Tensor] = {}
    count = 0

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen = inputs[0] if axis[name] == 0 else output
            total = seen.detach().abs().flatten(0, -2).double().sum(dim=0)
            sums[name] = sums[name] + total if name in sums else total

        return add

    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        for row in rows:
            model(input_ids=torch.from_numpy(row[None]))
            count += row.size
    return {name: _numpy(total / count) for name, total in sums.items()}


def _gradients(
    model: Any, modules: dict[str, nn.Linear], axis: dict[str, int], rows: Tokens
) -> dict[str, Scores]:
    sums = {
        name: torch.zeros(m.weight.shape[1 - axis[name]]).double() for name, m in modules.items()
    }
    for module in modules.values():
        module.weight.requires_grad_(True)
    try:
        for row in rows:
            ids = torch.from_numpy(row[None])
            model(input_ids=ids, labels=ids).loss.backward()
            for name, module in modules.items():
                grad = cast(Tensor, module.weight.grad)
                sums[name] += grad.double().norm(dim=axis[name])
                module.weight.grad = None
    finally:
        for module in modules.values():
            module.weight.requires_grad_(False)
            module.weight.grad = None
    return {name: _numpy(total / len(rows)) for name, total in sums.items()}


def _numpy(values: Tensor) -> Scores:
    return np.asarray(values.numpy(), np.float64)
