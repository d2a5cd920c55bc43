"""From results to a table: mean and sd over seeds, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One row at one sparsity, over its seeds."""

    row: str
    sparsity: str
    seeds: tuple[int, ...]
    perplexity: float  # mean
    sd: float  # NaN with one seed
    difference: float | None  # mean of (this - reference) over the seeds that both have
    difference_sd: float | None
    trainable: int
    seconds_per_step: float
    seconds: Mapping[str, float]  # by phase, mean over seeds
    peak_bytes: int
    optimiser_bytes: int

    def record(self) -> dict[str, Any]:
        """For JSON, which has no NaN: null."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def lines(results: Sequence[Result], reference: str) -> list[Line]:
    """All rows, in the order in which they first come; `reference` is what others differ from."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["sparsity"], result["row"]), []).append(result)
    found: list[Line] = []
    for (sparsity, row), own in groups.items():
        base = {r["seed"]: r["perplexity"] for r in groups.get((sparsity, reference), [])}
        paired = [r["perplexity"] - base[r["seed"]] for r in own if r["seed"] in base]
        found.append(_line(row, sparsity, own, paired if row != reference else []))
    return found


def _line(row: str, sparsity: str, own: Sequence[Result], paired: Sequence[float]) -> Line:
    scores = [float(r["perplexity"]) for r in own]
    costs: list[Mapping[str, Any]] = [r["cost"] for r in own if r["cost"]]
    phases = {name for cost in costs for name in cost["seconds"]}
    return Line(
        row=row,
        sparsity=sparsity,
        seeds=tuple(r["seed"] for r in own),
        perplexity=mean(scores),
        sd=_sd(scores),
        difference=mean(paired) if paired else None,
        difference_sd=_sd(paired) if paired else None,
        trainable=max(int(r["trainable"]) for r in own),
        seconds_per_step=_mean([c["seconds_per_step"] for c in costs]),
        seconds={n: _mean([c["seconds"].get(n, 0.0) for c in costs]) for n in sorted(phases)},
        peak_bytes=max([int(c["peak_rss_bytes"] or 0) for c in costs], default=0),
        optimiser_bytes=max([int(c["optimiser_bytes"]) for c in costs], default=0),
    )


def _sd(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


HEADER = (
    "row", "sparsity", "perplexity", "sd", "paired difference", "parameters", "s / step",
    "rates s", "masks s", "ranks s", "training s", "peak MB", "optimiser MB",
)  # fmt: skip


def texts(line: Line) -> list[str]:
    """The cells of a line, as `HEADER` names them."""
    paired = "" if line.difference is None else f"{line.difference:+.3f}"
    if line.difference_sd is not None and not math.isnan(line.difference_sd):
        paired += f" (sd {_number(line.difference_sd, 3)})"
    phases = [
        _number(line.seconds.get(n, math.nan), 1) for n in ("rates", "masks", "ranks", "training")
    ]
    return [
        line.row, line.sparsity, f"{line.perplexity:.3f}", _number(line.sd, 3), paired,
        f"{line.trainable:,}", _number(line.seconds_per_step, 3), *phases,
        _number(line.peak_bytes / 1e6 or math.nan, 0),
        _number(line.optimiser_bytes / 1e6 or math.nan, 1),
    ]  # fmt: skip


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(found: Sequence[Line]) -> str:
    """The table for a page."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(tuple(texts(line)) for line in found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
