"""AdaLoRA through peft: a LoRA with a diagonal whose entries a falling budget prunes.

Zhang et al. 2023 (arXiv 2303.10512; `peft/tuners/adalora`). The scale is taken of the first rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporter.adapters.adalora import write_adalora
from exporter.errors import UsageError
from harness.methods.base import Adaptation, Base, as_numpy

_TABLES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True)
class AdaloraSettings:
    """Ranks from `init_rank` to `rank` on average, between two shares of the steps."""

    init_rank: int = 12
    rank: int = 8
    alpha: float = 16.0
    start: float = 0.1  # share of the steps before the budget falls
    end: float = 0.2  # share of the steps with the last budget
    every: int = 1  # steps between two allocations
    orthogonality: float = 0.5


class Adalora(Adaptation):
    """peft's AdaLoRA on every linear of the blocks.

    Raises:
        UsageError: `usage` where no step is left for the budget to fall.
    """

    def __init__(self, base: Base, settings: AdaloraSettings) -> None:
        import peft

        self._base, self._settings = base, settings
        steps = base.training.steps
        first, last = round(settings.start * steps), max(1, round(settings.end * steps))
        if first + last >= steps or settings.rank >= settings.init_rank:
            raise UsageError(
                "usage",
                f"AdaLoRA from rank {settings.init_rank} to {settings.rank} in {steps} steps",
                expected="a falling rank, and steps between start and end",
                hint="Give more --steps, or --set init_rank above rank.",
            )
        config = peft.AdaLoraConfig(
            init_r=settings.init_rank,
            target_r=settings.rank,
            lora_alpha=cast(int, settings.alpha),
            lora_dropout=0.0,
            tinit=first,
            tfinal=last,
            deltaT=settings.every,
            total_step=steps,
            orth_reg_weight=settings.orthogonality,
            target_modules=[linear.module for linear in base.checked.spec.linears()],
            task_type="CAUSAL_LM",
        )
        model = cast(Any, peft).get_peft_model(base.model, config)
        self._tuner: Any = model.base_model
        super().__init__(model, {n: p for n, p in model.named_parameters() if p.requires_grad})

    def after_step(self, step: int) -> None:
        """Update the scores and spend the budget; wants the gradients."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """peft's moving averages, and the pattern once it is final."""
        allocator = self._tuner.rankallocator
        tables = {f"{t}.{n}": v for t in _TABLES for n, v in getattr(allocator, t).items()}
        pattern = self._config.rank_pattern or {}
        return tables | {f"pattern.{n}": torch.tensor(kept) for n, kept in pattern.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put both back."""
        allocator = self._tuner.rankallocator
        pattern: dict[str, Any] = {}
        for key, value in state.items():
            table, _, name = key.partition(".")
            if table == "pattern":
                pattern[name] = value.tolist()
            else:
                getattr(allocator, table)[name] = value
        self._config.rank_pattern = pattern or None

    @property
    def _config(self) -> Any:
        return self._tuner.peft_config["default"]

    def _tables(self) -> dict[str, dict[str, nn.Parameter]]:
        modules = [linear.module for linear in self._base.checked.spec.linears()]
        owner: nn.Module = self._tuner.model
        return {
            m: {n: p for n, p in owner.get_submodule(m).named_parameters() if "lora_" in n}
            for m in modules
        }

    def measured(self) -> dict[str, Any]:
        """Ranks that are left, by module."""
        tables = self._tables().items()
        return {"ranks": {m: int((t["lora_E.default"] != 0).sum()) for m, t in tables}}

    def write(self, out: Path) -> None:
        """A PEFT folder; triplets that the budget pruned stay out."""
        triplets: dict[str, Any] = {}
        kept: dict[str, list[bool]] = {}
        for module, table in self._tables().items():
            a, e, b = (table[f"lora_{part}.default"].detach() for part in "AEB")
            on = e[:, 0] != 0
            triplets[module] = (as_numpy(a[on]), as_numpy(e[on]), as_numpy(b[:, on]))
            kept[module] = on.tolist()
        write_adalora(
            out,
            triplets,
            init_r=self._settings.init_rank,
            alpha=self._settings.alpha,
            kept=kept,
            base_name=self._base.name,
        )
