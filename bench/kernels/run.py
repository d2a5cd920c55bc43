"""Rounds over all cases of a shape and M in changing order; ratios of the same round."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backends.packed.kernels.library import library
from bench.kernels.cases import Case, kernel_case, torch_case
from bench.kernels.peer import Worker, case_name, sparsity
from bench.stats import median_interval, speedup_interval
from bench.stolen import Stolen

__all__ = ["block", "read_ceiling", "time_rounds"]

Times = Mapping[str, list[float]]
_PAUSE_SECONDS, _WAKING = 0.01, 2


def time_rounds(
    cases: Sequence[Case], rounds: int, calls: int | Mapping[str, int]
) -> dict[str, list[float]]:
    """Seconds of one call of each case, one number a round.

    Each round draws a new order and makes `calls` calls a case (by its name, where they differ) on
    its copies in turn, so that
    what disturbs the machine meets all cases alike and every call finds its weights in memory,
    not in a cache. Before them a case has a pause, in which the threads of the one before end
    their spinning, and calls of its own that wake its threads: in a model one linear follows
    another.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {case.name: [] for case in cases}
    at = {case.name: 0 for case in cases}
    counts = {name: calls if isinstance(calls, int) else calls[name] for name in at}
    for _ in range(rounds):
        for index in rng.permutation(len(cases)):
            case = cases[index]
            time.sleep(_PAUSE_SECONDS)
            case.seconds(at[case.name], _WAKING)
            at[case.name] += _WAKING
            found[case.name].append(case.seconds(at[case.name], counts[case.name]))
            at[case.name] += counts[case.name]
    return found


def read_ceiling(megabytes: int = 256) -> Case:
    """Plain reading by the same threads: one call reads all of a buffer.

    From one place on or from eight at once, whichever is faster here: Ice Lake reads a quarter more
    in eight streams.
    """
    lib = library()
    data = np.ones(megabytes << 20, np.uint8)

    def reading(streams: int) -> Case:
        def call() -> object:
            return lib.read(data.ctypes.data, data.nbytes, streams)

        return Case("read", (call,), data.nbytes)

    return min(map(reading, (1, 8)), key=lambda case: min(case.seconds(0, 1) for _ in range(5)))


def block(
    shape: tuple[int, int], m: int, patterns: Sequence[str], values: Sequence[str],
    total: int, rounds: int, turn: float, worker: Worker | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One shape and M: `ratios`, `times` and `blocks` as build/bench/kernels.json has them.

    Args:
        turn: seconds that a case's calls of one round take, or a little longer. Calls by number
            would be over in a moment for the fast ones, and what disturbs them with it.
    """
    cases = [kernel_case(f"dense-{v}", shape, v, "dense", m, total) for v in values]
    cases += [kernel_case(f"{v} {p}", shape, v, p, m, total) for v in values for p in patterns]
    cases += [
        torch_case("torch-bf16", shape, m, total, half=True),
        torch_case("torch-fp32", shape, m, total, half=False),
        read_ceiling(),
    ]
    cases += worker.cases(shape, m, patterns, total) if worker else []
    first = time_rounds(cases, 1, 1)
    calls = {c.name: math.ceil(turn / (first[c.name][0] * c.linears)) for c in cases}
    stolen = Stolen()
    times = time_rounds(cases, rounds, calls)
    share = stolen.share()
    against = [f"dense-{v}" for v in values] + ["torch-bf16", "torch-fp32"]
    ratios = [
        _ratio(shape, m, p, v, other, times) for v in values for p in patterns for other in against
    ]
    if worker:
        ratios += [
            _ratio(shape, m, p, v, case_name(sparsity(p)), times) | {"against": "deepsparse"}
            for v in values
            for p in patterns
        ]
    return {
        "ratios": ratios
        + [_bandwidth(shape, m, cases, v, p, times) for v in values for p in patterns],
        "times": [
            {"m": m, "k": shape[1], "n": shape[0], "case": c.name, "ms": _ms(times[c.name])}
            | {"gb_per_second": c.bytes / float(np.median(times[c.name])) / 1e9}
            for c in cases
        ],
        "blocks": [{"m": m, "k": shape[1], "n": shape[0], "stolen": share}],
    }


def _bandwidth(
    shape: tuple[int, int], m: int, cases: Sequence[Case], values: str, pattern: str, times: Times
) -> dict[str, Any]:
    """Bytes a second over those of plain reading in the same round."""
    size = {case.name: case.bytes for case in cases}
    found = _ratio(shape, m, pattern, values, "read", times)
    share = size[f"{values} {pattern}"] / size["read"]
    return found | {key: found[key] * share for key in ("ratio", "low", "high")}


def _ms(seconds: list[float]) -> dict[str, float]:
    found = median_interval([1e3 * each for each in seconds], 0)
    return {"median": found.median, "low": found.low, "high": found.high}


def _ratio(
    shape: tuple[int, int], m: int, pattern: str, values: str, against: str, times: Times
) -> dict[str, Any]:
    base, ours = times[against], times[f"{values} {pattern}"]
    found = speedup_interval([[t] for t in base], [[t] for t in ours], 0)
    return {
        "m": m,
        "k": shape[1],
        "n": shape[0],
        "pattern": pattern,
        "values": values,
        "against": against,
        "ratio": found.median,
        "low": found.low,
        "high": found.high,
    }
