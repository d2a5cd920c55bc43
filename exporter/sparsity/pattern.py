"""Verdict on how a linear, and a whole model, is sparse. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["dense", "unstructured", "n:m", "mixed n:m", "rows", "columns"]


@dataclass(frozen=True)
class Pattern:
    """How one linear is sparse.

    `n` of each `m` consecutive inputs are kept at most, in every row ("N:M", N kept). Chosen
    by the rules in docs/reference/patterns.md: rows/columns when every zero lies in whole zero
    rows/columns; N:M for the smallest M in (4, 8, 16) whose bound N/M is nearly reached; else
    unstructured; dense below a stated share of zeros.
    """

    kind: Kind
    density: float  # kept / all
    n: int | None = None
    m: int | None = None

    def __str__(self) -> str:
        raise NotImplementedError  # SPARSITY: "dense", "unstructured 30.0%", "2:4", "rows 50.0%"


@dataclass(frozen=True)
class LinearPattern:
    """Verdict and counts of one linear."""

    module: str
    out_features: int
    in_features: int
    kept: int
    zero_rows: int
    zero_columns: int
    group_max: Mapping[int, int]  # M -> most kept values in any group of M inputs (4, 8, 16)
    pattern: Pattern

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1.0 - self.kept / (self.out_features * self.in_features)
