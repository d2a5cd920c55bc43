"""Warm-up on a virtual clock: until times settle, never without end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.warmup import Bounds, WarmUp, warm_up
from tests.bench.fakes import VirtualTime


def warm(times: Iterator[float], bounds: Bounds) -> WarmUp:
    clock = VirtualTime()

    def once() -> float:
        seconds = next(times)
        clock.spend(seconds)
        return seconds

    return warm_up(once, bounds, clock.clock)


def test_it_ends_once_two_in_a_row_agree() -> None:
    found = warm(iter([9.0, 3.0, 1.5, 1.02, 1.0, 1.0]), Bounds(2, 10, 100))
    assert found == WarmUp(5, pytest.approx(15.52), True)  # type: ignore[arg-type]


def test_count_and_time_bound_it() -> None:
    def halving() -> Iterator[float]:
        seconds = 16.0
        while True:
            yield seconds
            seconds = seconds * 1.5 if seconds < 16 else 8.0

    assert warm(halving(), Bounds(2, 6, 1e9)).rounds == 6
    late = warm(halving(), Bounds(2, 60, 30.0))
    assert late.rounds == 3 and not late.settled


def test_the_least_is_kept_and_none_is_none() -> None:
    assert warm(iter([1.0] * 9), Bounds(4, 10, 0.1)).rounds == 4
    assert warm(iter([]), Bounds(0)) == WarmUp(0, 0.0, True)
