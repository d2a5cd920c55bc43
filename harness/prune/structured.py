"""The streaming pass of wanda-sp: measure a block, drop units in all its linears, go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from backends.calibration.blocks import BlockStream
from exporter.arch.model_spec import Linear
from exporter.contract import Progress
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32
from harness.prune.sparsity import Sparsity, share_of
from harness.prune.stream import input_norms, require_finite
from harness.prune.wanda_sp import READ, choose_units, column_scores, kept_positions
from harness.text import Tokens


def prune_units(
    model: CheckedModel,
    targets: Sequence[Sparsity],
    tokens: Tokens,
    progress: Progress | None = None,
) -> Iterator[tuple[Linear, Bools, F32 | None]]:
    """`(linear, kept, None)` of every linear, block after block.

    Raises:
        VerificationFailed: `values-not-finite`, with the block and the linear named.
    """
    stream = BlockStream(fuse(model, []), tokens)
    for index in range(model.spec.layers):
        stream.load(index)
        linears = [linear for linear in model.spec.linears() if linear.layer == index]
        read = {li.role: cast(nn.Linear, stream.module(li.module)) for li in linears}
        norms = input_norms(
            {role: read[role] for role in READ},
            lambda at=index: stream.run(at, 0, len(tokens), advance=False),
        )
        for role, norm in norms.items():
            require_finite(norm, f"pruning, inputs in block {index}", role)
        scores = [column_scores(read[r].weight.detach().numpy(), norms[r].numpy()) for r in READ]
        units = choose_units(model.spec, scores[0], scores[1], share_of(targets[index]))
        for linear in linears:
            kept = kept_positions(model.spec, linear, units)
            read[linear.role].weight.detach().mul_(torch.from_numpy(kept.copy()))
            yield linear, kept, None
        stream.run(index, 0, len(tokens), advance=True)
        stream.drop(index)
        if progress is not None:
            progress(f"block {index + 1}", index + 1, model.spec.layers)
