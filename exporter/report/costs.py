"""What a merge costs on calibration text: the part of report.json, and its lines for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModuleCost(_Frozen):
    """One merged module: the squared error of its outputs over the squared outputs themselves,
    `tr(E H E^T) / tr(W* H W*^T)`, for inputs of the unmerged model (`exporter.calibration.costs`).
    """

    policy: str
    error: float
    error_masked: float  # the same, had the delta only been masked


class CostsPart(_Frozen):
    """Error by module and its mean over modules, and perplexity on held-out text."""

    observed_tokens: int  # that the Gram matrices are summed over
    held_out_tokens: int  # that perplexity is taken on; none of them is observed
    window: int  # tokens
    perplexity_unmerged: float  # of base and adapters, nothing dropped
    perplexity_merged: float
    error: float
    error_masked: float
    modules: Mapping[str, ModuleCost]

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Label and text of each line that a person reads."""
        rows = [
            (
                "perplexity",
                f"{self.perplexity_unmerged:.4g} unmerged, {self.perplexity_merged:.4g} merged "
                f"({self.held_out_tokens:,} held-out tokens in windows of {self.window})",
            )
        ]
        if self.modules:
            worst = max(self.modules.items(), key=lambda item: item[1].error)
            rows.append(
                (
                    "output error",
                    f"{self.error:.3g} of the squared outputs, mean over modules; "
                    f"{self.error_masked:.3g} if only masked; "
                    f"most {worst[1].error:.3g} in {worst[0]}",
                )
            )
        return tuple(rows)


def merge_lines(figures: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Label and text of what the merge itself gave up, from the figures of `measure`."""
    norm = math.sqrt(math.fsum(f["norm"] ** 2 for f in figures.values()))
    lost = math.sqrt(math.fsum(f["norm_lost"] ** 2 for f in figures.values()))
    if not norm:
        return ()
    rows = [("norm lost", f"{lost:.4g}, {lost / norm:.1%} of the deltas' norm")]
    moved = sum(f["moved"] for f in figures.values())
    if moved:
        rows.append(("mask", f"changed: {moved:,} positions moved"))
    return tuple(rows)
