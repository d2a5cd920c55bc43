"""Prune block by block while calibration text streams through what is pruned already.

As the code of Wanda, SparseGPT and ALPS: all linears of a block are measured in one pass with
their dense weights, pruned, and the block runs again to give the next its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from backends.calibration.blocks import BlockStream
from backends.calibration.grams import InputGrams
from exporter.arch.model_spec import Linear
from exporter.contract import Progress
from exporter.errors import VerificationFailed
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32
from harness.text import Tokens

Wants = Literal["norms", "grams"]
# Weight [out, in], inputs' norms [in] or Gram matrix [in, in] -> (new weight or None, kept).
PruneLinear = Callable[[Linear, torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, Bools]]
Result = tuple[Linear, Bools, F32 | None]


def prune_stream(
    model: CheckedModel,
    tokens: Tokens,
    wants: Wants,
    prune: PruneLinear,
    *,
    spill: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """`(linear, kept, new weight or None)` of every linear, block after block.

    Memory: one block in float32, what `prune` makes of one linear, the Gram matrices of a block
    where they are wanted, and the hidden states `[n, length, hidden]` of the calibration windows,
    which go into a file of `spill` where that is given.

    Raises:
        VerificationFailed: `values-not-finite`, with the block and the linear named.
    """
    stream = BlockStream(fuse(model, []), tokens, spill=spill)
    for index in range(model.spec.layers):
        stream.load(index)
        linears = [linear for linear in model.spec.linears() if linear.layer == index]
        modules = {li.module: cast(nn.Linear, stream.module(li.module)) for li in linears}
        measured = _measure(modules, wants, lambda at=index: _run(stream, at, len(tokens)))
        by_module = {linear.module: linear for linear in linears}
        for names, values in measured:
            require_finite(values, f"pruning, inputs in block {index}", names[0])
            for name in names:
                weight = modules[name].weight.detach()
                new, kept = prune(by_module[name], weight, values)
                weight.copy_(weight * torch.from_numpy(kept) if new is None else new)
                yield by_module[name], kept, None if new is None else new.numpy()
        if index + 1 < model.spec.layers:
            stream.run(index, 0, len(tokens), advance=True)
        stream.drop(index)
        if progress is not None:
            progress(f"block {index + 1}", index + 1, model.spec.layers)


def require_finite(values: torch.Tensor, phase: str, tensor: str) -> None:
    """Stop where a measured value is NaN or infinite.

    Raises:
        VerificationFailed: `values-not-finite`.
    """
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise VerificationFailed(
            "values-not-finite",
            f"{phase}: {bad} of {values.numel()} values are NaN or infinite",
            expected="finite activations",
            tensor=tensor,
        )


def _run(stream: BlockStream, index: int, count: int) -> None:
    stream.run(index, 0, count, advance=False)


def _measure(
    modules: dict[str, nn.Linear], wants: Wants, run: Callable[[], None]
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """What `run` shows of the inputs: `(modules that share them, values)`."""
    if wants == "grams":
        grams = InputGrams(modules)
        with grams.watching():
            run()
        yield from grams.results()
        return
    for name, norm in input_norms(modules, run).items():
        yield [name], norm


def input_norms(
    modules: dict[str, nn.Linear], run: Callable[[], object]
) -> dict[str, torch.Tensor]:
    """Norm of each input over all tokens that `run` feeds, float32 `[in]` per module."""
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
