"""Scores of a run: a table for people, JSON for machines (`result.schema.json` is its form)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from harness.evaluate.tasks.rows import DataFile


@dataclass(frozen=True)
class Score:
    """One metric of one task."""

    task: str
    metric: str
    filter: str  # which of a task's ways from text to answer; "none" for most
    value: float
    stderr: float | None  # of the mean over rows; None where the metric has none
    n: int  # rows
    shots: int | None  # None for a mean over tasks
    version: str  # of the task's definition


@dataclass(frozen=True)
class Scores:
    """A run, and everything needed to repeat it."""

    rows: tuple[Score, ...]
    files: tuple[DataFile, ...]
    limit: int | None
    cut: int  # prompts that lost their beginning: the model reads no longer ones
    model: str
    engine: Mapping[str, str]
    versions: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "scores": [asdict(row) for row in self.rows],
            "data": [file.record() for file in self.files],
            "limit": self.limit,
            "prompts_cut": self.cut,
            "model": self.model,
            **self.engine,
            "versions": dict(self.versions),
        }

    def table(self) -> Table:
        """For people."""
        shown = Table(title=f"{self.model}, {self.engine['engine']}")
        for name in ("task", "metric", "shots", "n", "value", "stderr"):
            shown.add_column(name, justify="left" if name in ("task", "metric") else "right")
        for row in self.rows:
            metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
            shots = "" if row.shots is None else str(row.shots)
            error = "" if row.stderr is None else f"{row.stderr:.4f}"
            shown.add_row(row.task, metric, shots, str(row.n), f"{row.value:.4f}", error)
        return shown


def rows_of(found: Mapping[str, Any]) -> tuple[Score, ...]:
    """The rows of what `lm_eval.evaluator.evaluate` gives; means over tasks first."""
    groups: Mapping[str, Any] = found.get("groups", {})
    names = [*groups, *(name for name in found["results"] if name not in groups)]
    return tuple(row for name in names for row in _rows(name, found))


def _rows(name: str, found: Mapping[str, Any]) -> list[Score]:
    values: Mapping[str, Any] = found["results"][name]
    rows: list[Score] = []
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        rows.append(
            Score(
                task=name,
                metric=metric,
                filter=filtered,
                value=float(value),
                stderr=float(error) if isinstance(error, (int, float)) else None,
                n=_rows_scored(name, found),
                shots=found["n-shot"].get(name),
                version=str(found["versions"].get(name, "")),
            )
        )
    return rows


def _rows_scored(name: str, found: Mapping[str, Any]) -> int:
    samples: Mapping[str, Any] = found["n-samples"]
    if name in samples:
        return int(samples[name]["effective"])
    members: list[str] = found["group_subtasks"][name]
    return sum(_rows_scored(member, found) for member in members)
