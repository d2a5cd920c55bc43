"""The kernel benchmark: rounds, ratios, goals, the page, and DeepSparse's process."""

from __future__ import annotations

import numpy as np
import pytest

from backends.packed.kernels.library import Library
from bench.kernels.cases import Case
from bench.kernels.page import goal, kernels_html, verdicts
from bench.kernels.peer import deepsparse_worker, sparsity
from bench.kernels.run import block, time_rounds


def test_rounds_take_copies_in_turn() -> None:
    seen: list[str] = []
    calls = tuple(lambda i=i: seen.append(f"a{i}") for i in range(3))
    other = Case("b", (), 8, elsewhere=lambda count: seen.append("b") or count * 0.5)
    times = time_rounds([Case("a", calls, 8), other], rounds=4, calls=2)
    # A round: two calls that wake the threads, and the two that are counted.
    assert [s for s in seen if s != "b"] == ["a0", "a1", "a2"] * 5 + ["a0"]
    assert times["b"] == [1.0] * 4 and seen.count("b") == 4 * 2
    assert len(times["a"]) == 4 and all(t > 0 for t in times["a"])
    time_rounds([Case("a", calls, 8), other], rounds=1, calls={"a": 5, "b": 1})
    assert len([s for s in seen if s != "b"]) == 16 + 2 + 5


@pytest.mark.parametrize("lines", [1, 7, 65_536, 65_543, 3 * 65_536 + 1])
def test_reading_reads_all(kernels: Library, lines: int) -> None:
    data = np.random.default_rng(lines).integers(0, 2**64, 8 * lines, np.uint64, endpoint=False)
    for streams in (1, 8):
        assert kernels.read(data.ctypes.data, data.nbytes, streams) == int(data.sum())


def test_a_block(kernels: Library) -> None:
    part = block((64, 128), 2, ["50%", "2:8"], ["bf16", "int8"], 1, rounds=2, turn=0.001)
    against = {"dense-bf16", "dense-int8", "torch-bf16", "torch-fp32", "read"}
    assert {r["against"] for r in part["ratios"]} == against
    assert {(r["n"], r["k"], r["m"]) for r in part["ratios"]} == {(64, 128, 2)}
    assert all(0 < r["low"] <= r["ratio"] <= r["high"] for r in part["ratios"])
    assert {t["case"] for t in part["times"]} >= {"bf16 50%", "int8 2:8", "dense-bf16", "read"}
    (about,) = part["blocks"]
    assert (about["n"], about["k"], about["m"]) == (64, 128, 2)
    assert about["stolen"] is None or 0 <= about["stolen"] <= 1


def ratio(against: str, m: int, values: str = "bf16", pattern: str = "50%") -> dict:
    given = {"against": against, "m": m, "values": values, "pattern": pattern, "n": 8, "k": 9}
    return given | {"ratio": 1.5, "low": 1.4, "high": 1.6}


def test_goals_and_page() -> None:
    assert goal(ratio("deepsparse", 16)) == 2.0 and goal(ratio("deepsparse", 1, "int8")) == 3.0
    assert goal(ratio("deepsparse", 128)) == 1.1 and goal(ratio("torch-bf16", 1)) is None
    assert goal(ratio("dense-bf16", 1, pattern="70%")) == 1.8
    assert goal(ratio("dense-bf16", 16)) is None and goal(ratio("read", 1)) == 0.7
    ratios = [ratio("deepsparse", 128), ratio("deepsparse", 1), ratio("torch-bf16", 1)]
    assert [row[-1] for row in verdicts(ratios)] == ["reached", "yes", "no"]
    blocks = [{"m": 1, "k": 64, "n": 32, "stolen": share} for share in (0.25, None)]
    found = {"isa": "avx2", "threads": 2, "cpu": "a <cpu>", "ratios": ratios, "times": []}
    found |= {"blocks": blocks}
    html = kernels_html(found)
    assert "a &lt;cpu&gt;" in html and "1.40 to 1.60" in html and "not installed" in html
    assert "meanwhile: [32, 64], 1: 25%.</p>" in html


def test_sparsity() -> None:
    assert sparsity("70%") == 0.7 and sparsity("2:8") == 0.75


@pytest.mark.deepsparse
def test_deepsparse_takes_turns() -> None:
    with deepsparse_worker(1) as worker:
        assert worker is not None
        cases = worker.cases((32, 64), 1, ["50%", "2:4", "90%"], 1 << 16)
        assert [case.name for case in cases] == ["deepsparse 50%", "deepsparse 90%"]
        assert all(case.seconds(0, 2) > 0 for case in cases)
        assert worker.facts["share"] == 1.0
