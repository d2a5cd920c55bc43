"""Masks of a whole model for training: the same sparsity in all blocks, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from backends.calibration.blocks import BlockStream
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from harness.prune.select import keep
from harness.prune.sparsity import NM, Sparsity, Unstructured
from harness.text import Tokens

Pruner = Literal["wanda", "magnitude"]


def block_sparsities(target: Sparsity, rates: Sequence[float]) -> list[Sparsity]:
    """The sparsity of each block: a share of its own, or the pattern that all have."""
    if isinstance(target, NM):
        return [target] * len(rates)
    return [Unstructured(float(rate), target.scope) for rate in rates]


def share_of(target: Sparsity) -> float:
    """Share of zeros that `target` stands for."""
    return 1.0 - target.n / target.m if isinstance(target, NM) else target.share


def make_masks(
    model: CheckedModel,
    sparsities: Sequence[Sparsity],
    pruner: Pruner,
    tokens: Tokens,
    progress: Progress | None = None,
) -> dict[str, Mask]:
    """Mask of every linear; zeros of the model have score zero, so masks nest as shares rise.

    Args:
        model: checked; with wanda its blocks run one by one, fed by pruned predecessors.
        sparsities: of each block.
        pruner: `wanda` (|W| times the norm of its input) or `magnitude`.
        tokens: calibration windows `[n, length]`.
        progress: told after each block.
    """
    if pruner == "magnitude":
        linears = model.spec.linears()
        return {
            li.module: Mask.from_bool(
                keep(np.abs(model.checkpoint.rows(li.weight)), sparsities[li.layer])
            )
            for li in linears
        }
    return dict(_wanda(model, sparsities, tokens, progress))


def _wanda(
    model: CheckedModel, sparsities: Sequence[Sparsity], tokens: Tokens, progress: Progress | None
) -> Iterator[tuple[str, Mask]]:
    stream = BlockStream(fuse(model, []), tokens)
    for index in range(model.spec.layers):
        stream.load(index)
        modules = {
            li.module: cast(nn.Linear, stream.module(li.module))
            for li in model.spec.linears()
            if li.layer == index
        }
        norms = input_norms(modules, lambda at=index: stream.run(at, 0, len(tokens), advance=False))
        for name, module in modules.items():
            weight = module.weight.detach().numpy()
            kept = keep(np.abs(weight) * norms[name], sparsities[index])
            weight *= kept
            yield name, Mask.from_bool(kept)
        stream.run(index, 0, len(tokens), advance=True)
        stream.drop(index)
        if progress is not None:
            progress(f"masks of block {index + 1}", index + 1, model.spec.layers)


def input_norms(modules: Mapping[str, nn.Linear], run: Callable[[], None]) -> dict[str, F32]:
    """Norm of each input column over all tokens that `run` feeds, float32 `[in]` per module."""
    sums = {n: torch.zeros(m.in_features, dtype=torch.float64) for n, m in modules.items()}

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] += inputs[0].detach().flatten(0, -2).double().square_().sum(dim=0)

        return add

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        run()
    return {name: total.sqrt().float().numpy() for name, total in sums.items()}
