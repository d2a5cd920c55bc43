"""LoRA and DoRA through peft, on a frozen base: dense deltas, whatever the base's mask.

Merging them into a sparse base needs a policy that says what is lost; they are rows of
comparison with the masked methods. DoRA: Liu et al. 2024, eq. 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from exporter.adapters.lora_write import write_lora
from harness.methods.base import Adaptation, Base, as_numpy
from harness.methods.sparse_lora import LowRankSettings


class PeftLora(Adaptation):
    """peft's LoRA (with `dora` its DoRA) on every linear of the blocks."""

    def __init__(self, base: Base, settings: LowRankSettings, *, dora: bool) -> None:
        import peft

        self._base, self._settings, self._dora = base, settings, dora
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=cast(int, settings.alpha),
            lora_dropout=0.0,
            bias="none",
            use_dora=dora,
            target_modules=[linear.module for linear in base.checked.spec.linears()],
            task_type="CAUSAL_LM",
        )
        model = cast(Any, peft).get_peft_model(base.model, config)
        super().__init__(model, {n: p for n, p in model.named_parameters() if p.requires_grad})

    def write(self, out: Path) -> None:
        """A PEFT folder of the trained factors."""
        parts = {"lora_A.default.weight": 0, "lora_B.default.weight": 1}
        modules = [linear.module for linear in self._base.checked.spec.linears()]
        owner: nn.Module = self.model.base_model.model
        tables = {m: dict(owner.get_submodule(m).named_parameters()) for m in modules}
        factors = {m: tuple(as_numpy(t[p]) for p in parts) for m, t in tables.items()}
        magnitudes = {m: as_numpy(_magnitude(t)) for m, t in tables.items()} if self._dora else None
        write_lora(
            out,
            cast(Any, factors),
            alpha=self._settings.alpha,
            magnitudes=magnitudes,
            base_name=self._base.name,
        )


def _magnitude(table: dict[str, nn.Parameter]) -> Tensor:
    return table["lora_magnitude_vector.default.weight"]


def lora(base: Base, settings: LowRankSettings) -> PeftLora:
    """peft's LoRA."""
    return PeftLora(base, settings, dora=False)


def dora(base: Base, settings: LowRankSettings) -> PeftLora:
    """peft's DoRA."""
    return PeftLora(base, settings, dora=True)
