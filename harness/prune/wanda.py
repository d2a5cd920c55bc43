"""Wanda: |W| times the norm of its input over calibration text, per output row, no update.

Sun et al. 2024 (ICLR), equation 1; sequential over blocks as in its code (`lib/prune.py`,
`lib/layerwrapper.py`): statistics come from inputs that passed through pruned predecessors, all
linears of a block are measured in one pass, and the block runs again after it was pruned. The
code's mean over sequences is a sum here: one factor per linear changes no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import cast

import numpy as np
import torch
from torch import nn

from backends.calibration.blocks import BlockStream
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from harness.prune.select import Bools, keep
from harness.prune.sparsity import Sparsity
from harness.text import Tokens


def wanda_masks(
    model: CheckedModel, sparsity: Sparsity, tokens: Tokens, progress: Progress | None = None
) -> Iterator[tuple[str, Mask]]:
    """`(module, mask)` of every linear in the spec's order.

    Memory: one block in float32, the hidden states `[n, length, hidden]` of the calibration
    windows, and one linear's scores.

    Args:
        model: checked.
        sparsity: what to reach in each linear.
        tokens: calibration windows `[n, length]`.
        progress: told after each block.
    """
    stream = BlockStream(fuse(model, []), tokens)
    linears = model.spec.linears()
    for index in range(model.spec.layers):
        stream.load(index)
        modules = {
            linear.module: cast(nn.Linear, stream.module(linear.module))
            for linear in linears
            if linear.layer == index
        }
        norms = _input_norms(
            modules, lambda at=index: stream.run(at, 0, len(tokens), advance=False)
        )
        for name, module in modules.items():
            kept = _prune(module, norms[name], sparsity)
            yield name, Mask.from_bool(kept)
        stream.run(index, 0, len(tokens), advance=True)
        stream.drop(index)
        if progress is not None:
            progress(f"block {index + 1}", index + 1, model.spec.layers)


def _prune(module: nn.Linear, norm: torch.Tensor, sparsity: Sparsity) -> Bools:
    weight = module.weight.detach().numpy()
    scores = np.abs(weight)
    scores *= norm.numpy()
    kept = keep(scores, sparsity)
    weight *= kept
    return kept


def _input_norms(modules: dict[str, nn.Linear], run: Callable[[], None]) -> dict[str, torch.Tensor]:
    """Norm of each input column over all tokens that `run` feeds, float32 `[in]` per module."""
    sums = {
        name: torch.zeros(module.in_features, dtype=torch.float64)
        for name, module in modules.items()
    }

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            flat = inputs[0].detach().flatten(0, -2)
            sums[name] += flat.double().square_().sum(dim=0)

        return add

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        run()
    return {name: total.sqrt().float() for name, total in sums.items()}
