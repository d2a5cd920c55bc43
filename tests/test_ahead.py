"""`ahead`: results in order, few under way, faults at their turn."""

from __future__ import annotations

import threading
import time

import pytest

from exporter.ahead import ahead


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order(count: int, threads: int) -> None:
    def slower_first(key: int) -> int:
        time.sleep(0.002 * (count - key))
        return key * key

    assert list(ahead(slower_first, range(count), threads)) == [k * k for k in range(count)]


def test_no_more_are_made_than_asked() -> None:
    started: list[int] = []

    def make(key: int) -> int:
        started.append(key)
        return key

    results = ahead(make, range(100), 2)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 3  # one given out, two under way
    results.close()


def test_a_fault_comes_out_at_its_turn() -> None:
    def make(key: int) -> int:
        if key == 2:
            raise ValueError("third")
        return key

    results = ahead(make, range(5), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="third"):
        next(results)


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    results = ahead(lambda key: key, range(50), 2)
    next(results)
    results.close()
    assert threading.active_count() == before
