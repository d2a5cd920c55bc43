"""Reconstruction error of each block: the dense model against the sparse one, streamed.

LoSA (arXiv 2502.14816) eq. 6: `L_i = (1/d) sum_c |Y_c - Y'_c|^2 / |Y_c|^2` over the hidden
channels c of block i's output on calibration text, Y of the dense model, Y' of the sparse one fed
by its own sparse blocks. The public code holds all dense outputs; two sums per channel do.
"""

from __future__ import annotations

import torch

from backends.calibration.blocks import BlockStream
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from harness.text import Tokens


def reconstruction_errors(
    dense: CheckedModel, sparse: CheckedModel, tokens: Tokens, progress: Progress | None = None
) -> list[float]:
    """L of every block, on windows `tokens [n, length]`; one block of each model in memory.

    A channel that the dense model leaves at zero counts as zero error if the sparse one does too,
    and as 1 otherwise (the public code divides by zero there).
    """
    left, right = (BlockStream(fuse(model, []), tokens) for model in (dense, sparse))
    found: list[float] = []
    for index in range(dense.spec.layers):
        for stream in (left, right):
            stream.load(index)
            stream.run(index, 0, len(tokens), advance=True)
            stream.drop(index)
        found.append(relative_error(left.hidden, right.hidden))
        if progress is not None:
            progress(f"error of block {index + 1}", index + 1, dense.spec.layers)
    return found


def relative_error(want: torch.Tensor, got: torch.Tensor) -> float:
    """Mean over channels of the relative squared error of `[n, length, channels]`, in float64."""
    channels = want.shape[-1]
    missed = torch.zeros(channels, dtype=torch.float64)
    whole = torch.zeros(channels, dtype=torch.float64)
    for y, other in zip(want, got, strict=True):
        y64 = y.double()
        missed += (y64 - other.double()).square().sum(dim=0)
        whole += y64.square().sum(dim=0)
    ratio = torch.where(whole > 0, missed / whole, (missed > 0).double())
    return float(ratio.mean())
