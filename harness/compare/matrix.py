"""The cells of a comparison: methods x sparsities x seeds, sized to equal trained parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.arch.model_spec import ModelSpec
from exporter.errors import UsageError
from harness.methods.registry import METHODS
from harness.prune.sparsity import parse_sparsity

ONESHOT = "oneshot"  # the pruned model without training
RANKED = ("losa", "swgi", "sparse-lora", "lors", "lora", "dora", "sora", "oracle")


@dataclass(frozen=True)
class Row:
    """`NAME[:KEY=VALUE...]`; `pruner=` is of the run, other keys are settings of the method."""

    label: str
    method: str
    pruner: str
    settings: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Row:
        """One row of `--methods`.

        Raises:
            UsageError: `usage`.
        """
        name, *rest = text.split(":")
        if name != ONESHOT and name not in {m.value for m in METHODS}:
            known = ", ".join((ONESHOT, *(m.value for m in METHODS)))
            raise UsageError("usage", f"--methods {text}", expected=f"of {known}")
        pruner = [t.removeprefix("pruner=") for t in rest if t.startswith("pruner=")]
        settings = tuple(t for t in rest if not t.startswith("pruner="))
        return cls(text, name, pruner[0] if pruner else "wanda", settings)

    def sized(self, spec: ModelSpec, rank: int) -> tuple[str, ...]:
        """The settings with as many parameters as a LoRA of `rank` on all linears has.

        SPP's count is fixed by the method, LISA and full train more: the table tells.
        """
        given = {t.partition("=")[0] for t in self.settings}
        add: list[str] = []
        if self.method in RANKED:
            add = [f"rank={rank}"]
        elif self.method == "adalora":
            add = [f"rank={rank}", f"init_rank={rank + max(1, rank // 2)}"]
        elif self.method == "s2ft":
            share = s2ft_share(spec, rank)
            add = [f"o={share}", f"down={share}"]
        if self.method == "oracle":
            add.append("positions=random")
        return (*self.settings, *(t for t in add if t.partition("=")[0] not in given))


def s2ft_share(spec: ModelSpec, rank: int) -> float:
    """Share of the heads of `o` and channels of `down` that has a LoRA's parameters."""
    linears = spec.linears()
    lora = rank * sum(li.in_features + li.out_features for li in linears)
    whole = sum(li.in_features * li.out_features for li in linears if li.role in ("o", "down"))
    return round(min(1.0, lora / whole), 6)


@dataclass(frozen=True)
class Cell:
    """One run."""

    row: Row
    sparsity: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return re.sub(r"[^A-Za-z0-9.=_-]", "-", f"{self.row.label}@{self.sparsity}@{self.seed}")


def cells(methods: str, sparsities: str, seeds: str) -> list[Cell]:
    """All cells, seed by seed, so that an early stop leaves whole comparisons.

    Raises:
        UsageError: `usage`.
    """
    rows = [Row.parse(text) for text in _parts(methods)]
    patterns = _parts(sparsities)
    for pattern in patterns:
        parse_sparsity(pattern)
    numbers = _parts(seeds)
    if not all(n.isdigit() for n in numbers) or len(set(numbers)) != len(numbers):
        raise UsageError("usage", f"--seeds {seeds}", expected='different whole numbers ("0,1,2")')
    return [Cell(r, p, int(n)) for n in numbers for p in patterns for r in rows]


def _parts(text: str) -> Sequence[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("usage", f"{text!r}", expected="a list with commas")
    return parts


__all__ = ["ONESHOT", "Cell", "Row", "cells", "s2ft_share"]
