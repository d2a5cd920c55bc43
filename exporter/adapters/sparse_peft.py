"""SparsePEFT: a LoRA that is masked by the zeros of the weight, in training and in the merge.

`W' = W + s (B A) . (W != 0)` (SQFT, Munoz et al. 2024; its patch of PEFT 0.10, option
`sparse_adapter`). The Sparse LoRA baseline and LoRS compute the same forward. A zero of the weight
stays a zero, so the merge is exact on a sparse base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.adapters.base import KeptRows
from exporter.adapters.factors import Factors
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.peft_files import PeftFolder, label
from exporter.adapters.tiles import zero_outside
from exporter.errors import InputRefused
from exporter.model import LowRank, RowReader
from exporter.store.dtypes import F32

# Written by SQFT beside an adapter whose rank is elastic (neural low-rank search).
ELASTIC = "elastic_adapter_config.json"


@dataclass(frozen=True)
class SparsePeftDelta:
    """`s (B A) . (W != 0)`, to be bound to W."""

    inner: LowRankDelta

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.inner.shape

    def bind(self, base: RowReader, kept: KeptRows | None) -> BoundSparsePeft:
        """The delta on `base`, whose own zeros decide, as in training: not a masks file."""
        del kept
        return BoundSparsePeft(self.inner, base)


@dataclass(frozen=True)
class BoundSparsePeft:
    """SparsePEFT on one weight."""

    inner: LowRankDelta
    base: RowReader

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        return self.inner.shape

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]`, float32, +0.0 where the weight is zero."""
        block = self.inner.rows(r0, r1)
        zero_outside(block, self.base(r0, r1) != 0)
        return block

    def low_rank(self) -> LowRank | None:
        """None: a mask has no factors."""
        return None


def refuse_elastic(folder: Path) -> None:
    """A super-adapter holds many adapters of different ranks; which one is meant is not recorded.

    Raises:
        InputRefused: `adapter-option`.
    """
    if (folder / ELASTIC).exists():
        raise InputRefused(
            "adapter-option",
            f"{ELASTIC}: the adapter's rank is elastic, and no rank was chosen",
            expected="one sub-adapter",
            file=label(folder, ELASTIC),
            hint="Extract a sub-adapter with SQFT's own script and export that.",
        )


def by_lors_names(
    factors: Mapping[str, Factors], shapes: Mapping[str, tuple[int, int]], opened: PeftFolder
) -> Mapping[str, Factors]:
    """The factors with A and B swapped where all of them are named as LoRS's code does.

    That code calls the `[out, r]` matrix lora_A and the `[r, in]` matrix lora_B. PEFT's names are
    kept wherever they fit one of the modules.
    """
    if factors and all(_is_lors(f, shapes[m], opened) for m, f in factors.items()):
        return {m: replace(f, a=f.b, b=f.a) for m, f in factors.items()}
    return factors


def _is_lors(factors: Factors, shape: tuple[int, int], opened: PeftFolder) -> bool:
    a, b = (opened.tensors.entries[n].shape for n in (factors.a, factors.b))
    if len(a) != 2 or len(b) != 2 or (a[1], b[0]) == shape[::-1]:
        return False
    return a[0] == shape[0] and b[1] == shape[1] and a[1] == b[0]
