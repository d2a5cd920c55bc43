"""Low-rank factors under a fixed mask: Sparse LoRA (SparsePEFT), LoRS, and LoSA's inner step.

SQFT (Munoz et al. 2024), LoRS (arXiv 2501.08582) and LoSA (arXiv 2502.14816, eq. 1) compute the
same forward `M . (W + s B A)`. They differ in the gradient and in what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.adapters.lora_write import write_lora
from harness.methods.base import Adaptation, Base, as_numpy, kept_of, put, require_zeros
from harness.methods.lors import LorsLinear
from harness.methods.masked import MaskedLoraLinear


@dataclass(frozen=True)
class LowRankSettings:
    """Rank of every linear; the scale is `alpha / rank`."""

    rank: int = 8
    alpha: float = 16.0


class MaskedLowRank(Adaptation):
    """Masked factors on the linears of `ranks`; `layers` by module."""

    def __init__(
        self,
        base: Base,
        ranks: Mapping[str, int],
        scale: float,
        layer: type[MaskedLoraLinear] = MaskedLoraLinear,
    ) -> None:
        generator = base.generator()
        self.layers: dict[str, MaskedLoraLinear] = {}
        for linear in base.checked.spec.linears():
            if linear.module not in ranks:
                continue
            old = base.model.get_submodule(linear.module)
            kept = kept_of(base, linear)
            new = layer(old, kept, ranks[linear.module], scale, generator)
            put(base.model, linear.module, new)
            self.layers[linear.module] = new
        trained = {
            f"{name}.{part}": parameter
            for name, made in self.layers.items()
            for part, parameter in (("a", made.lora_a), ("b", made.lora_b))
        }
        super().__init__(base.model, trained)

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A `[r, in]` and B `[out, r]` by module."""
        return {name: (la.lora_a.detach(), la.lora_b.detach()) for name, la in self.layers.items()}

    def verify(self) -> None:
        """See `Adaptation.verify`."""
        for name, layer in self.layers.items():
            require_zeros(layer.weight, layer.kept, f"{name}.weight")


class SparseLora(MaskedLowRank):
    """Sparse LoRA or LoRS: written as a LoRA with `sparse_adapter`."""

    def __init__(
        self, base: Base, settings: LowRankSettings, layer: type[MaskedLoraLinear]
    ) -> None:
        ranks = {linear.module: settings.rank for linear in base.checked.spec.linears()}
        super().__init__(base, ranks, settings.alpha / settings.rank, layer)
        self._base, self._settings = base, settings

    def write(self, out: Path) -> None:
        """A SparsePEFT folder (docs/formats/sparse_peft.md)."""
        write_lora(
            out,
            {name: (as_numpy(a), as_numpy(b)) for name, (a, b) in self.factors().items()},
            alpha=self._settings.alpha,
            sparse=True,
            base_name=self._base.name,
        )


def sparse_lora(base: Base, settings: LowRankSettings) -> SparseLora:
    """The Sparse LoRA baseline: uniform rank, one mask, exact gradient."""
    return SparseLora(base, settings, MaskedLoraLinear)


def lors(base: Base, settings: LowRankSettings) -> SparseLora:
    """LoRS."""
    return SparseLora(base, settings, LorsLinear)
