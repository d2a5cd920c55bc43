"""Warm-up until the times stand still, bounded by time and by count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.clock import Clock

_STILL = 0.05  # relative change of the last time against the one before
_WINDOW = 2


@dataclass(frozen=True)
class Bounds:
    """`least` rounds in any case (0: no warm-up at all); none begins after `seconds`."""

    least: int = 2
    most: int = 10
    seconds: float = 30.0


@dataclass(frozen=True)
class WarmUp:
    """What was thrown away."""

    rounds: int
    seconds: float
    settled: bool


def warm_up(run: Callable[[], float], bounds: Bounds, clock: Clock) -> WarmUp:
    """Call `run`, which gives its own seconds, until two in a row differ by at most 5 %.

    Settled means only that the first, cold calls are over: a machine that is busy never stands
    still, hence the bounds.
    """
    start = clock.now()
    times: list[float] = []
    while len(times) < bounds.most and bounds.least > 0:
        if len(times) >= bounds.least and (_settled(times) or _late(start, bounds, clock)):
            break
        times.append(run())
    return WarmUp(len(times), clock.now() - start, bounds.least == 0 or _settled(times))


def _settled(times: list[float]) -> bool:
    last = times[-_WINDOW:]
    return len(last) == _WINDOW and max(last) <= min(last) * (1 + _STILL)


def _late(start: float, bounds: Bounds, clock: Clock) -> bool:
    return clock.now() - start >= bounds.seconds
