"""LoSA: masks, rates and ranks anew in every iteration, low-rank factors that live under the mask.

Huang et al. 2025 (ICLR, arXiv 2502.14816); equations 1, 4-9 and the public code
(`main.py`, `lib/prune.py`). Defects of that code are not carried over: factors hold the ranks
that were allocated (there 8 at most), the rank budget is met, and the mask is kept as bits, not
read from zeros. `literal_ranks` brings back the first two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from exporter.adapters.losa import write_losa
from exporter.model import CheckedModel
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from harness.methods.base import Adaptation, Base, as_numpy
from harness.methods.iterative import Start
from harness.methods.iterative_settings import IterativeSettings
from harness.methods.lors import LorsLinear
from harness.methods.losa_layer import Shrink, grow, shrink
from harness.methods.masked import MaskedLoraLinear
from harness.methods.masking import Pruning
from harness.methods.ranks import allocate, allocate_literal
from harness.methods.sparse_lora import MaskedLowRank


@dataclass(frozen=True)
class LosaSettings(IterativeSettings):
    """The mean rank of iteration t of T is `rank + growth * (t - (T + 1) / 2)`: 6 to 10 for 5.

    The scale is `alpha / rank` whatever the rank of a module, so growing changes no output.
    `shrink`: what becomes of ranks that a block loses. `literal_ranks`: the public code's
    allocation, cut at `rank`, as there. `gradient` of the factors: the exact one forms `dy^T x`, a
    third large product beside the two of a LoRA step; the cheap one leaves the mask out, as LoRS.
    """

    rank: int = 8
    alpha: float = 16.0
    growth: float = 1.0
    least: int = 1
    most: int = 16
    shrink: Shrink = "truncate"
    literal_ranks: bool = False
    gradient: Literal["exact", "cheap"] = "exact"


class Losa(MaskedLowRank):
    """LoSA's factors in one iteration; written as a LoSA bundle."""

    def __init__(
        self, base: Base, settings: LosaSettings, ranks: Mapping[str, int],
        start: Mapping[str, F32] | None = None,
    ) -> None:  # fmt: skip
        layer = LorsLinear if settings.gradient == "cheap" else MaskedLoraLinear
        super().__init__(base, ranks, settings.alpha / settings.rank, layer)
        self._base, self._settings = base, settings
        with torch.no_grad():
            for name, layer in self.layers.items():
                if start and f"{name}.a" in start:
                    layer.lora_a.copy_(torch.from_numpy(start[f"{name}.a"]))
                    layer.lora_b.copy_(torch.from_numpy(start[f"{name}.b"]))

    def write(self, out: Path) -> None:
        """A LoSA bundle (docs/formats/losa.md)."""
        history = self._base.facts.get("history") or []
        facts: dict[str, object] = {"seed": self._base.training.seed}
        if history:
            facts |= {
                "T": self._settings.iterations,
                "schedule": self._settings.schedule,
                "s_final": float(history[-1]["sparsity"]),
                "beta": self._settings.beta,
            }
            if self._settings.delta is not None:
                facts["delta"] = self._settings.delta
        write_losa(
            out,
            base_name=self._base.name,
            base_sha256=self._base.checked.checkpoint.identity(),
            factors={n: (as_numpy(a), as_numpy(b)) for n, (a, b) in self.factors().items()},
            masks={n: Mask.from_bool(la.kept.cpu().numpy()) for n, la in self.layers.items()},
            alpha=self._settings.alpha,
            r_ref=self._settings.rank,
            facts=facts,
        )


class LosaRounds:
    """LoSA as the iterative loop sees it."""

    def __init__(self, settings: LosaSettings, sparsity_given: bool) -> None:
        # On a mask that is given there is nothing to prune again: one iteration.
        self.settings = settings if sparsity_given else replace(settings, iterations=1)
        self._losa = settings

    def sizes(self, checked: CheckedModel, errors: list[float], t: int) -> dict[str, int]:
        """Ranks by module: each block's seven linears share one (eq. 7 and 9)."""
        s, layers = self._losa, checked.spec.layers
        mean = s.rank + s.growth * (t - (self.settings.iterations + 1) / 2)
        if not errors:
            ranks = [min(s.most, max(s.least, round(mean)))] * layers
        elif s.literal_ranks:
            ranks = [min(s.rank, r) for r in allocate_literal(errors, mean, s.least, s.most)]
        else:
            ranks = allocate(errors, round(mean * layers), s.least, s.most)
        return {li.module: ranks[li.layer] for li in checked.spec.linears()}

    def merged(self, adaptation: Adaptation) -> dict[str, F32]:
        """`M . (W + s B A)`."""
        if not isinstance(adaptation, Losa):
            raise TypeError("not LoSA")
        found: dict[str, F32] = {}
        with torch.no_grad():
            for name, layer in adaptation.layers.items():
                whole = torch.addmm(layer.weight, layer.lora_b, layer.lora_a, alpha=layer.scale)
                found[f"{name}.weight"] = as_numpy(whole.masked_fill(~layer.kept, 0.0))
        return found

    def start(
        self, before: Adaptation | None, pruned: Mapping[str, F32], done: Pruning,
        sizes: Mapping[str, int], t: int, seed: int,
    ) -> Start:  # fmt: skip
        """W as it was, under the new mask; factors of the new ranks."""
        if before is None:
            return Start(pruned, {}, exact=bool(done.rewritten))
        if not isinstance(before, Losa):
            raise TypeError("not LoSA")
        generator = torch.Generator().manual_seed(seed + 1000 * t)
        weights: dict[str, F32] = {}
        tensors: dict[str, F32] = {}
        for name, layer in before.layers.items():
            a, b = layer.lora_a.detach(), layer.lora_b.detach()
            scale, weight = np.float32(layer.scale), as_numpy(layer.weight)
            if f"{name}.weight" in done.rewritten:
                # A pruner that rewrites was given W + s B A: what it gave, less the branch.
                weight = pruned[f"{name}.weight"] - scale * as_numpy(b @ a)
            # Else the tensor before merging, never the merged one less the branch: that erodes.
            a, b, rest = shrink(a, b, sizes[name], self._losa.shrink)
            a, b = grow(a, b, sizes[name], generator)
            if rest is not None:
                weight = weight + scale * as_numpy(rest)
            weights[f"{name}.weight"] = weight * done.masks[name].rows()
            tensors |= {f"{name}.a": as_numpy(a), f"{name}.b": as_numpy(b)}
        exact = self._losa.shrink == "fold" or bool(done.rewritten)
        return Start(weights, tensors, exact=exact)

    def attach(
        self, base: Base, sizes: Mapping[str, int], tensors: Mapping[str, F32]
    ) -> Adaptation:
        """Factors under the iteration's mask."""
        return Losa(base, self._losa, sizes, tensors)
