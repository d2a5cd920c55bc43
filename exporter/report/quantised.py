"""What quantised values cost: the part of report.json, and its lines for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuantisedModule(_Frozen):
    """One quantised linear; see `exporter.quantise.measure.ModuleLoss`."""

    method: str
    weight: float  # ||W' - W|| / ||W||
    weight_max: float  # max|W' - W| / max|W|
    zeroed: int  # kept weights that were not zero and are now
    error: float | None = None  # squared error of the outputs over the squared outputs
    error_rounded: float | None = None  # the same, had the weights only been rounded


class QuantisedText(_Frozen):
    """What was measured on text; the held-out tokens are none of those observed."""

    observed_tokens: int
    held_out_tokens: int
    window: int  # tokens
    perplexity_before: float  # of the model with its values as they are
    perplexity_after: float


class QuantisedPart(_Frozen):
    """Kind of codes, and the loss of each linear."""

    kind: str
    group: int  # columns that share a scale; 0: a row
    method: str  # as asked for
    modules: Mapping[str, QuantisedModule]
    text: QuantisedText | None = None  # with --calibration

    @property
    def weight(self) -> float:
        """Mean over modules of the relative change of the weights."""
        return _mean([m.weight for m in self.modules.values()])

    @property
    def errors(self) -> tuple[float, float] | None:
        """Mean over modules of the output error, and of that by rounding; None: not measured."""
        found = [m for m in self.modules.values() if m.error is not None]
        if not found:
            return None
        return _mean([m.error or 0.0 for m in found]), _mean(
            [m.error_rounded or 0.0 for m in found]
        )

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Label and text of each line that a person reads."""
        scale = f"a scale for every {self.group} inputs" if self.group else "a scale for each row"
        rows = [
            ("values", f"{self.kind}, {scale}, {self.method}; {len(self.modules)} linears"),
        ]
        if self.modules:
            name, worst = max(self.modules.items(), key=lambda item: item[1].weight)
            told = f"{self.weight:.3g} of the weights' norm, mean over linears; most "
            rows.append(("change of weights", f"{told}{worst.weight:.3g} in {name}"))
        if self.errors is not None:
            rows.append(("output error of values", self._error(*self.errors)))
        if self.text is not None:
            text = self.text
            rows.append(
                (
                    "perplexity of values",
                    f"{text.perplexity_before:.4g} before, {text.perplexity_after:.4g} quantised "
                    f"({text.held_out_tokens:,} held-out tokens in windows of {text.window})",
                )
            )
        return tuple(rows)

    def _error(self, error: float, rounded: float) -> str:
        name, worst = max(self.modules.items(), key=lambda item: item[1].error or 0.0)
        by_rounding = f"; {rounded:.3g} if only rounded" if self.method != "round" else ""
        return (
            f"{error:.3g} of the squared outputs, mean over linears{by_rounding}; "
            f"most {worst.error:.3g} in {name}"
        )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / max(1, len(values))
