"""Change points over a folder of results: when did a figure move for good, and by how much?

PELT with a squared loss (Killick, Fearnhead and Eckley 2012; the library ruptures) on the logs of
the medians, in units of their own noise, with three times the BIC's penalty. Each change found is
kept only where Mann-Whitney's test of its two segments and the minimum effect agree: one wild
result makes no change point.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from bench.comparison import RunResult
from bench.decide.ranks import mann_whitney
from bench.decide.rule import Rule
from bench.extras import need
from bench.like import differences
from bench.load import read_result
from bench.parts import Frozen
from exporter.errors import InputRefused

_LEAST = 4  # results in a segment: of 3 against 3 no rank test can pass at 5 %
_MAD = 1.4826  # of a normal distribution's sigma


class Change(Frozen):
    """One lasting move of one workload's gate."""

    workload: str
    metric: str
    at: str = Field(description="time of the first result after it")
    title: str
    before: float = Field(description="median seconds of the segment before")
    after: float
    ratio: float = Field(description="after over before: above 1 is slower")
    p: float = Field(description="of Mann-Whitney's test of the two segments")
    last: bool = Field(description="whether nothing has moved since")


class Series(Frozen):
    """One workload over time."""

    workload: str
    metric: str
    times: list[str]
    seconds: list[float]


class HistoryResult(Frozen):
    """Everything of one `sparse-bench history`."""

    schema_version: Literal[1] = 1
    kind: Literal["history"] = "history"
    results: int
    left_out: dict[str, str] = Field(description="files that were not taken, and why")
    series: list[Series]
    changes: list[Change]

    @property
    def slower(self) -> list[Change]:
        """Workloads whose last change made them slower."""
        return [change for change in self.changes if change.last and change.ratio > 1]


def read_history(folder: Path, rule: Rule, *, force: bool = False) -> HistoryResult:
    """Results of `run` in a folder, in order of time; of the machine of the newest, unless forced.

    Raises:
        InputRefused: `input-missing` for a folder without results.
    """
    left_out: dict[str, str] = {}
    found: list[RunResult] = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = read_result(path)
        except InputRefused as error:
            left_out[path.name] = error.found[:200]
            continue
        if isinstance(result, RunResult):
            found.append(result)
        else:
            left_out[path.name] = f"a result of `{result.kind}`"
    if not found:
        raise InputRefused("input-missing", "no result of `run` here", file=str(folder))
    found.sort(key=lambda result: result.time)
    same = [r for r in found if force or not differences(found[-1].fingerprint, r.fingerprint)]
    if len(same) < len(found):
        left_out["unlike machines"] = f"{len(found) - len(same)} results"
    series = _series(same)
    return HistoryResult(
        results=len(same),
        left_out=left_out,
        series=series,
        changes=_changes(series, same, rule),
    )


def change_points(seconds: Sequence[float]) -> list[int]:
    """Indices at which a new level begins."""
    if len(seconds) < 2 * _LEAST:
        return []
    logs = np.log(np.asarray(seconds, dtype=np.float64))
    # Of neighbours' differences: a step between two levels hardly shows in it.
    steps = np.abs(np.diff(logs))
    noise = _MAD * float(np.median(steps)) / math.sqrt(2)
    if noise == 0.0:
        noise = float(np.mean(steps)) or 1.0
    pelt: Any = need("ruptures").Pelt(model="l2", min_size=_LEAST, jump=1)
    ends = pelt.fit((logs / noise)[:, None]).predict(pen=3 * math.log(len(logs)))
    return [int(end) for end in ends[:-1]]


def _series(results: Sequence[RunResult]) -> list[Series]:
    names = dict.fromkeys((w.workload, w.gate) for r in results for w in r.workloads)
    out: list[Series] = []
    for workload, metric in names:
        points: list[tuple[str, float]] = []
        for result in results:
            values = [f for w in result.workloads if w.workload == workload
                      if (f := w.figure(metric)) is not None]  # fmt: skip
            if values and values[0].value is not None:
                points.append((result.time, values[0].value))
        out.append(
            Series(
                workload=workload,
                metric=metric,
                times=[time for time, _ in points],
                seconds=[seconds for _, seconds in points],
            )
        )
    return out


def _changes(series: Sequence[Series], results: Sequence[RunResult], rule: Rule) -> list[Change]:
    titles = {result.time: result.title for result in results}
    found: list[Change] = []
    for one in series:
        cuts = [0, *change_points(one.seconds), len(one.seconds)]
        for i in range(1, len(cuts) - 1):
            before = one.seconds[cuts[i - 1] : cuts[i]]
            after = one.seconds[cuts[i] : cuts[i + 1]]
            found.append(_change(one, cuts, i, before, after, titles))
    bound = math.log1p(rule.min_effect)
    return [c for c in found if c.p <= rule.alpha and abs(math.log(c.ratio)) > bound]


def _change(
    one: Series,
    cuts: Sequence[int],
    i: int,
    before: Sequence[float],
    after: Sequence[float],
    titles: dict[str, str],
) -> Change:
    low, high = statistics.median(before), statistics.median(after)
    moment = one.times[cuts[i]]
    return Change(
        workload=one.workload,
        metric=one.metric,
        at=moment,
        title=titles[moment],
        before=low,
        after=high,
        ratio=high / low,
        p=mann_whitney([[v] for v in before], [[v] for v in after]),
        last=i == len(cuts) - 2,
    )
