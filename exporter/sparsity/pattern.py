"""Verdict on how a linear, and a whole model, is sparse. Pure functions, no I/O.

The rules and their reasons: docs/reference/patterns.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from exporter.sparsity.nm import GROUPS, capacity

Kind = Literal["dense", "unstructured", "n:m", "mixed n:m", "rows", "columns"]
ModelKind = Literal["dense", "unstructured", "n:m", "mixed n:m", "structured", "mixed"]

DENSE_BELOW = 0.01
"""A linear with a smaller share of zeros is dense: trained weights hold a few exact zeros."""

NM_REACHED = 0.95
"""Least share of what N:M allows that must be kept for the verdict N:M.

Above 14/15, so that one group of an N:16 matrix over its bound never yields (N+1):16.
"""


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

    @property
    def label(self) -> str:
        """The verdict without its density: "unstructured", "2:4", "rows"."""
        return f"{self.n}:{self.m}" if self.kind == "n:m" else self.kind

    def __str__(self) -> str:
        """ "dense", "unstructured, density 30.0%", "2:4", "rows, density 50.0%"."""
        return _with_density(self.label, self.kind, self.density)


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


@dataclass(frozen=True)
class ModelPattern:
    """Verdict over all linears; `labels` counts them by `Pattern.label`, most frequent first."""

    kind: ModelKind
    density: float  # kept / all, by weights
    labels: Mapping[str, int]
    n: int | None = None
    m: int | None = None  # of "mixed n:m" too, where all its linears share it

    @property
    def label(self) -> str:
        """The verdict without its density: "unstructured", "2:4", "mixed n:m"."""
        return f"{self.n}:{self.m}" if self.kind == "n:m" else self.kind

    def __str__(self) -> str:
        """Like `Pattern`; "mixed n:8, density 25.0%" where M is shared."""
        label = self.label
        if self.kind == "mixed n:m" and self.m:
            label = f"mixed n:{self.m}"
        return _with_density(label, self.kind, self.density)


def linear_pattern(
    module: str,
    shape: tuple[int, int],
    *,
    kept: int,
    zero_rows: int,
    zero_columns: int,
    group_max: Mapping[int, int],
) -> LinearPattern:
    """Counts of one linear `[out, in]` with the verdict on them."""
    out, width = shape
    verdict = _verdict(out, width, kept, zero_rows, zero_columns, group_max)
    return LinearPattern(
        module, out, width, kept, zero_rows, zero_columns, dict(group_max), verdict
    )


def _verdict(
    out: int, width: int, kept: int, zero_rows: int, zero_columns: int, most: Mapping[int, int]
) -> Pattern:
    density = kept / (out * width)
    if 1.0 - density < DENSE_BELOW:
        return Pattern("dense", density)
    # Rows and columns left out, is what remains dense?
    rest = (out - zero_rows) * (width - zero_columns)
    if rest - kept < DENSE_BELOW * rest or not rest:
        by_rows = zero_rows * width >= zero_columns * out
        return Pattern("rows" if by_rows else "columns", density)
    for m in GROUPS:
        n = most[m]
        room = (out - zero_rows) * capacity(width, n, m)
        if n < min(m, width) and kept >= NM_REACHED * room:
            return Pattern("n:m", density, n, m)
    return Pattern("unstructured", density)


def model_pattern(linears: Iterable[LinearPattern]) -> ModelPattern:
    """Verdict over a model's linears, weighted by their sizes. Dense when there are none.

    One linear kind (dense ones beside it allowed) gives its name; rows and columns together are
    "structured"; linears of different N:M, or N:M beside dense, are "mixed n:m"; any other
    company is "mixed".
    """
    kept = total = 0
    labels: Counter[str] = Counter()
    patterns: set[tuple[Kind, int | None, int | None]] = set()
    for linear in linears:
        kept += linear.kept
        total += linear.out_features * linear.in_features
        labels[linear.pattern.label] += 1
        patterns.add((linear.pattern.kind, linear.pattern.n, linear.pattern.m))
    density = kept / total if total else 1.0
    counts = dict(sorted(labels.items(), key=lambda item: (-item[1], item[0])))
    sparse = {p for p in patterns if p[0] != "dense"}
    kinds = {kind for kind, _, _ in sparse}
    if not kinds:
        return ModelPattern("dense", density, counts)
    if kinds == {"n:m"}:
        (_, n, m), *more = sorted(sparse, key=str)
        if not more and len(patterns) == 1:
            return ModelPattern("n:m", density, counts, n, m)
        shared = {p[2] for p in sparse}
        return ModelPattern("mixed n:m", density, counts, None, m if len(shared) == 1 else None)
    if kinds == {"unstructured"}:
        return ModelPattern("unstructured", density, counts)
    return ModelPattern("structured" if kinds <= {"rows", "columns"} else "mixed", density, counts)


def _with_density(label: str, kind: str, density: float) -> str:
    return label if kind in ("dense", "n:m") else f"{label}, density {density:.1%}"
