"""Peak memory of lowering over models of growing size: it should follow the largest tensor."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.table import Table

from bench.child import ChildRun, run_child
from bench.fingerprint import fingerprint
from bench.results import SCHEMA_VERSION, Fingerprint, Frozen
from exporter.contract import Progress
from exporter.errors import EngineUnfit, UsageError
from exporter.store.checkpoint import Checkpoint

MAX_GROWTH = 0.05  # from the second model to the last
TENSORS = 3  # times the largest tensor in float32, above the baseline

_BASELINE = "import sys, exporter.cli; from exporter.registry import load_target; load_target({!r})"

Runner = Callable[[Sequence[str]], ChildRun]


class MemoryPoint(Frozen):
    """One model folder; medians over the repeats."""

    model: str
    weight_bytes: int
    largest_tensor_bytes: int = Field(description="as float32, the type of the output")
    seconds: list[float]
    peak_rss_bytes: list[int]

    @property
    def peak(self) -> float:
        """Median peak, bytes."""
        return statistics.median(self.peak_rss_bytes)


class MemoryResult(Frozen):
    """Everything of one `sparse-bench memory`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["memory"] = "memory"
    target: str
    baseline_rss_bytes: int = Field(description="a process that only imports exporter and target")
    points: list[MemoryPoint]
    growth: float | None = Field(description="peak of the last over that of the second, less one")
    growth_allowed: float = MAX_GROWTH
    bound_bytes: int = Field(description="baseline and 3 times the largest float32 tensor")
    within_growth: bool | None
    within_bound: bool
    fingerprint: Fingerprint


def measure_memory(
    models: Sequence[Path],
    target: str = "onnxruntime",
    repeats: int = 1,
    progress: Progress | None = None,
    *,
    runner: Runner = run_child,
) -> MemoryResult:
    """Lower each model in a process of its own, without verification, and keep its peak RSS.

    Raises:
        UsageError: `usage` where no model is given.
        InputRefused: a model folder that cannot be read.
        EngineUnfit: `engine-crashed` where an export fails.
    """
    if not models or repeats < 1:
        raise UsageError("usage", f"{len(models)} models, {repeats} repeats")
    machine = fingerprint()
    name = target.partition(",")[0]
    baseline = _checked(runner([sys.executable, "-c", _BASELINE.format(name)]), "the baseline")
    points: list[MemoryPoint] = []
    for i, model in enumerate(models):
        if progress is not None:
            progress(model.name, i, len(models))
        points.append(_point(model, target, repeats, runner))
    growth = points[-1].peak / points[1].peak - 1 if len(points) > 2 else None
    largest = max(p.largest_tensor_bytes for p in points)
    bound = baseline.peak_rss_bytes + TENSORS * largest
    return MemoryResult(
        target=target,
        baseline_rss_bytes=baseline.peak_rss_bytes,
        points=points,
        growth=growth,
        bound_bytes=bound,
        within_growth=None if growth is None else growth < MAX_GROWTH,
        within_bound=max(max(p.peak_rss_bytes) for p in points) < bound,
        fingerprint=machine,
    )


def lower_argv(model: Path, target: str, out: Path) -> list[str]:
    """The command that is measured: lowering alone; what it wrote is thrown away by itself."""
    call = "import sys; from exporter.cli import main; main(sys.argv[1:])"
    options = ["--target", target, "--lower-only", "-o", str(out), "--json"]
    return [sys.executable, "-c", call, str(model), *options]


def memory_table(result: MemoryResult) -> Table:
    """A row a model, the baseline and the bound in the caption."""
    grown = "-" if result.growth is None else f"{result.growth:+.1%} (allowed +{MAX_GROWTH:.0%})"
    caption = (
        f"baseline {result.baseline_rss_bytes / 1e6:,.0f} MB; bound "
        f"{result.bound_bytes / 1e6:,.0f} MB: {'kept' if result.within_bound else 'BROKEN'}; "
        f"second to last: {grown}"
    )
    table = Table(title=f"lowering to {result.target}, no verification", caption=caption)
    for head in ("model", "weights, GB", "peak RSS, MB", "seconds"):
        table.add_column(head, justify="left" if head == "model" else "right")
    for p in result.points:
        seconds = statistics.median(p.seconds)
        table.add_row(
            p.model, f"{p.weight_bytes / 1e9:.2f}", f"{p.peak / 1e6:,.0f}", f"{seconds:.1f}"
        )
    return table


def _point(model: Path, target: str, repeats: int, runner: Runner) -> MemoryPoint:
    checkpoint = Checkpoint.open(model)
    entries = checkpoint.entries.values()
    weight_bytes = sum(e.nbytes for e in entries)
    largest = max(math.prod(e.shape) * 4 for e in entries)
    checkpoint.close()
    # Beside the model: the output is as large, and /tmp may be memory.
    with tempfile.TemporaryDirectory(prefix="lowered-", dir=model.absolute().parent) as scratch:
        argv = lower_argv(model, target, Path(scratch) / "out")
        runs = [_checked(runner(argv), model.name) for _ in range(repeats)]
    return MemoryPoint(
        model=model.absolute().name,
        weight_bytes=weight_bytes,
        largest_tensor_bytes=largest,
        seconds=[r.seconds for r in runs],
        peak_rss_bytes=[r.peak_rss_bytes for r in runs],
    )


def _checked(run: ChildRun, what: str) -> ChildRun:
    if run.failed:
        raise EngineUnfit(
            "engine-crashed",
            f"{what}: status {run.status}\n{run.log}",
            hint="Run the export by hand; its error stands above.",
        )
    return run
