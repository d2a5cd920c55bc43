"""How much is pruned: a share of zeros, or N kept of each M inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from exporter.errors import UsageError

Scope = Literal["row", "tensor"]


@dataclass(frozen=True)
class Unstructured:
    """Zero `share` of the weights: of each output row (the lowest floor(in * share)), or of all."""

    share: float
    scope: Scope = "row"

    def __str__(self) -> str:
        return f"{self.share:.0%} unstructured, per {self.scope}"


@dataclass(frozen=True)
class NM:
    """Keep `n` of each `m` consecutive inputs of a row; of a shorter last group its share, up."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Sparsity = Unstructured | NM


def parse_sparsity(text: str, scope: Scope = "row") -> Sparsity:
    """ "0.7" (share of zeros) or "2:4" (N kept of M, for any N below M).

    Raises:
        UsageError: `usage`.
    """
    group = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
    if group:
        n, m = int(group[1]), int(group[2])
        if 0 < n < m:
            return NM(n, m)
    elif re.fullmatch(r"0?\.\d+", text) and 0 < float(text) < 1:
        return Unstructured(float(text), scope)
    raise UsageError(
        "usage",
        f"--sparsity {text}",
        expected='a share of zeros between 0 and 1 ("0.7"), or N kept of M with 0 < N < M ("2:4")',
        hint="Correct --sparsity.",
    )


def share_of(sparsity: Sparsity) -> float:
    """Share of zeros that is asked for."""
    return sparsity.share if isinstance(sparsity, Unstructured) else 1 - sparsity.n / sparsity.m
