"""What a host takes from a virtual machine, and the note of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from bench.flow import run_one
from bench.notes import process_notes
from bench.stolen import Stolen
from tests.bench.fleet import SMALL, Fleet


class _Bare(NamedTuple):
    user: float
    system: float
    idle: float


class _Times(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float
    softirq: float
    steal: float


def _count(monkeypatch: pytest.MonkeyPatch, *counts: object) -> None:
    left = iter(counts)
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(left))


def test_the_share_is_of_what_was_wanted_not_of_all_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _count(monkeypatch, _Times(10, 5, 100, 3, 1, 2), _Times(15, 6, 900, 9, 2, 5))
    assert Stolen().share() == pytest.approx(3 / (5 + 1 + 1 + 3))


def test_nothing_wanted_and_nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    still = _Times(10, 5, 100, 3, 1, 2)
    _count(monkeypatch, still, still)
    assert Stolen().share() == 0.0
    _count(monkeypatch, _Bare(1, 1, 1), _Bare(2, 1, 1))
    assert Stolen().share() is None


def test_a_result_says_what_the_host_took(pair: tuple[Path, Path]) -> None:
    found = run_one(pair[0], Fleet().how((SMALL[0],)))
    assert all(p.stolen is None or 0 <= p.stolen <= 1 for p in found.processes)
    first, second = found.processes[:2]
    taken = [first.model_copy(update={"stolen": 0.1}), second.model_copy(update={"stolen": 0.3})]
    assert process_notes(taken) == [
        "The host gave 20% of the CPU time that this virtual machine wanted to others while it "
        "was timed (at most 30% in a process)."
    ]
    assert process_notes([p.model_copy(update={"stolen": 0.01}) for p in taken]) == []
    assert process_notes([p.model_copy(update={"stolen": None}) for p in taken]) == []
