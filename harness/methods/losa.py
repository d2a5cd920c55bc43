"""LoSA's inner step: low-rank factors trained under a fixed mask, saved as a LoSA bundle.

Huang et al. 2025 (ICLR), equation 1, with the mask and the ranks given: the outer loop (rates,
masks and ranks that change) calls this between its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.adapters.losa import write_losa
from exporter.arch.spec import Linear
from exporter.model import CheckedModel, MaskSource
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from harness.hf import load_float32
from harness.methods.loop import reproducible, train
from harness.methods.masked import MaskedLoraLinear
from harness.methods.options import Report, Training
from harness.text import Tokens

Ranks = int | Mapping[str, int]


def train_losa(
    checked: CheckedModel,
    rows: Tokens,
    out: Path,
    options: Training,
    *,
    ranks: Ranks = 8,
    alpha: float = 16.0,
    r_ref: int = 8,
    report: Report,
) -> list[float]:
    """Train on the mask of `checked` and write the bundle into `out` (empty or absent).

    Args:
        checked: the sparse base with its masks.
        rows: windows of token ids `[n, length]`.
        out: the bundle.
        options: steps, batch, learning rate, seed.
        ranks: one rank for all linears, or a rank for each module that gets factors.
        alpha: numerator of the scale.
        r_ref: its denominator, for every module whatever its rank.
        report: told of each step's loss.

    Raises:
        VerificationFailed: `training-failed`; nothing is written.
    """
    table = _table(checked, ranks)
    with reproducible(options.seed):
        model = load_float32(checked.checkpoint.root)
        layers = attach(model, checked, table, alpha / r_ref, options.seed)
        losses = train(model, rows, options, report)
    linears = {linear.module: linear for linear in checked.spec.linears()}
    write_losa(
        out,
        base_name=checked.checkpoint.root.resolve().name,
        base_sha256=checked.checkpoint.identity(),
        factors={name: (_numpy(la.lora_a), _numpy(la.lora_b)) for name, la in layers.items()},
        masks=_Masks(checked.masks, {name: linears[name] for name in layers}),
        alpha=alpha,
        r_ref=r_ref,
        facts={"seed": options.seed},
    )
    return losses


def attach(
    model: Any, checked: CheckedModel, ranks: Mapping[str, int], scale: float, seed: int
) -> dict[str, MaskedLoraLinear]:
    """Put a masked linear in place of each module of `ranks`; gives them by module."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, MaskedLoraLinear] = {}
    for linear in checked.spec.linears():
        if linear.module not in ranks:
            continue
        kept = torch.from_numpy(checked.masks.mask(linear).rows())
        old = model.get_submodule(linear.module)
        new = MaskedLoraLinear(old, kept, ranks[linear.module], scale, generator)
        owner, _, leaf = linear.module.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)
        layers[linear.module] = new
    return layers


class _Masks(Mapping[str, Mask]):
    """Masks by module, each read when asked for."""

    def __init__(self, source: MaskSource, linears: Mapping[str, Linear]) -> None:
        self._source, self._linears = source, linears

    def __getitem__(self, module: str) -> Mask:
        return self._source.mask(self._linears[module])

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def __len__(self) -> int:
        return len(self._linears)


def _table(checked: CheckedModel, ranks: Ranks) -> Mapping[str, int]:
    if isinstance(ranks, int):
        return {linear.module: ranks for linear in checked.spec.linears()}
    return ranks


def _numpy(values: torch.Tensor) -> F32:
    return values.detach().numpy().astype(np.float32)
