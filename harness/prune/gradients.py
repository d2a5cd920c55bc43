"""Gradients of the loss by every linear's weight, block after block from the last to the first.

The forward pass leaves each block's input on disk; the backward pass loads one block at a time,
computes it again and goes back through it, so memory is one block, its gradients and their sums,
where a backward pass over the whole model would hold it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from backends.calibration.blocks import BlockStream
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from harness.prune.stream import require_finite
from harness.text import Tokens

# By module: the weight and the sum over windows of its squared gradient, float32 [out, in].
Squares = dict[str, tuple[torch.Tensor, torch.Tensor]]


def block_squares(
    model: CheckedModel, tokens: Tokens, folder: Path, progress: Progress | None = None
) -> Iterator[tuple[int, Squares]]:
    """`(block, {module: (weight, squares)})` from the last block to the first.

    The loss is a window's mean negative log-likelihood of its next tokens; each window of `tokens`
    `[n, length]` has a gradient of its own.

    Args:
        model: checked; not changed.
        tokens: calibration windows.
        folder: an empty folder on disk, for `layers * n * length * hidden` float32.
        progress: told after each block of both passes.

    Raises:
        VerificationFailed: `values-not-finite`, with the block and the linear named.
    """
    stream = BlockStream(fuse(model, []), tokens)
    layers, count = model.spec.layers, len(tokens)
    inputs = np.memmap(
        folder / "inputs.f32", np.float32, "w+", shape=(layers, *stream.hidden.shape)
    )
    for index in range(layers):
        inputs[index] = stream.hidden.numpy()
        stream.load(index)
        stream.run(index, 0, count, advance=True)
        stream.drop(index)
        _tell(progress, "forward", index, layers)
    require_finite(stream.hidden, "gradients, forward", f"output of block {layers - 1}")
    gradients = stream.loss_gradients()
    for index in reversed(range(layers)):
        stream.load(index)
        names = [li.module for li in model.spec.linears() if li.layer == index]
        modules = {name: cast(nn.Linear, stream.module(name)) for name in names}
        yield index, _block(stream, index, modules, torch.from_numpy(inputs[index]), gradients)
        stream.drop(index)
        _tell(progress, "backward", layers - 1 - index, layers)


def _block(
    stream: BlockStream,
    index: int,
    modules: dict[str, nn.Linear],
    inputs: torch.Tensor,
    gradients: torch.Tensor,
) -> Squares:
    """Go back through one block; `gradients` `[n, length, hidden]` become those of its inputs."""
    sums = {name: torch.zeros_like(module.weight) for name, module in modules.items()}
    for module in modules.values():
        module.weight.requires_grad_()
    for window in range(len(inputs)):
        gradients[window] = stream.backward(index, inputs[window], gradients[window])
        for name, module in modules.items():
            if module.weight.grad is not None:
                sums[name].addcmul_(module.weight.grad, module.weight.grad)
                module.weight.grad = None
    for name, total in sums.items():
        require_finite(total, f"gradients, backward through block {index}", name)
    return {name: (module.weight.detach(), sums[name]) for name, module in modules.items()}


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(f"{what} {done + 1}", done + 1, total)
