"""Rank tests, Holm, percentiles, statuses, confirmation; golden decisions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.decide.percentiles import percentiles, values_needed
from bench.decide.ranks import holm, mann_whitney, pairs_needed, rank_test, signed_rank
from bench.decide.ratio import Ratio
from bench.decide.rule import Rule, confirm, judge_cells, precise, status_of, worst
from bench.decide.simulate import Design, simulate

RULE = Rule()


def test_mann_whitney_is_the_share_of_orders_as_extreme() -> None:
    base, new = [[1.0], [2.0], [4.0]], [[3.0], [5.0], [6.0], [7.0]]
    values = [1.0, 2.0, 4.0, 3.0, 5.0, 6.0, 7.0]
    counts: list[int] = []
    for chosen in itertools.combinations(range(7), 3):
        rest = [values[i] for i in range(7) if i not in chosen]
        counts.append(sum(values[i] > other for i in chosen for other in rest))
    observed, middle = 1, 6.0  # only 4 > 3; the mean of U is 3 * 4 / 2
    extreme = sum(abs(c - middle) >= abs(observed - middle) for c in counts) / len(counts)
    assert mann_whitney(base, new) == pytest.approx(extreme)


def test_signed_rank_of_n_pairs_on_one_side_is_the_smallest() -> None:
    base = [[1.0]] * 8
    new = [[1.1 + i / 100] for i in range(8)]
    assert signed_rank(base, new) == pytest.approx(2 / 2**8)
    assert rank_test(base, new, paired=True) == signed_rank(base, new)
    assert rank_test(base, new, paired=False) == mann_whitney(base, new)


def test_equal_sides_have_p_one() -> None:
    same = [[1.0]] * 6
    assert signed_rank(same, same) == mann_whitney(same, same) == 1.0


def test_a_process_counts_once_in_the_ranks() -> None:
    base, new = [[1.0] * 50, [1.2] * 50], [[1.1] * 50, [1.3] * 50]
    assert mann_whitney(base, new) > 0.3


def test_holm_golden_and_bounds() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_never_lowers_and_keeps_the_order(raw: list[float]) -> None:
    found = holm(raw)
    assert all(f >= r for f, r in zip(found, raw, strict=True))
    assert all(found[i] <= found[j] for i in range(len(raw)) for j in range(len(raw))
               if raw[i] < raw[j])  # fmt: skip


def test_pairs_that_are_needed() -> None:
    assert [pairs_needed(k, 0.05) for k in (1, 2, 4, 12)] == [6, 7, 8, 9]


@given(st.integers(1, 300))
def test_percentile_only_where_n_supports_it(n: int) -> None:
    for found in percentiles(np.random.default_rng(n).random(n).tolist()):
        given_ = found.value is not None
        assert given_ == (n >= values_needed(found.level))
        if found.low is not None and found.high is not None and found.value is not None:
            assert found.low <= found.value <= found.high
    assert [values_needed(p) for p in (0.5, 0.9, 0.95, 0.99)] == [2, 10, 20, 100]


def test_order_statistic_interval_covers_the_percentile() -> None:
    draw, held = np.random.default_rng(2), 0
    for _ in range(100):
        p90 = percentiles(draw.exponential(size=200).tolist(), (0.9,))[0]
        assert p90.low is not None and p90.high is not None and p90.text == "p90"
        held += p90.low <= -np.log(0.1) <= p90.high
    assert held >= 90


def ratio(low: float, high: float, blocks: int = 8) -> Ratio:
    return Ratio((low + high) / 2, low, high, blocks, True)


@pytest.mark.parametrize(
    ("found", "p", "status"),
    [
        (ratio(1.03, 1.05), 0.001, "slower"),
        (ratio(1.03, 1.05), 0.20, "noisy"),  # the ranks do not agree
        (ratio(1.01, 1.03), 0.001, "near"),
        (ratio(1.01, 1.09), 0.001, "noisy"),
        (ratio(0.99, 1.01), 0.8, "same"),
        (ratio(0.90, 0.93), 0.001, "faster"),
        (ratio(0.90, 1.10), 0.8, "noisy"),
        (ratio(1.03, 1.05, blocks=5), 0.001, "noisy"),
    ],
)
def test_golden_statuses(found: Ratio, p: float, status: str) -> None:
    assert status_of(found, p, RULE) == status


@pytest.mark.parametrize(
    ("first", "second", "final"),
    [
        ("slower", "slower", "slower"),
        ("slower", "same", "unconfirmed"),
        ("slower", "faster", "unconfirmed"),
        ("slower", "noisy", "noisy"),
        ("slower", "near", "noisy"),
        ("faster", "slower", "faster"),
        ("same", "slower", "same"),
    ],
)
def test_only_two_slow_measurements_make_a_regression(first: str, second: str, final: str) -> None:
    assert confirm(first, second) == final  # type: ignore[arg-type]


def test_the_worst_decides() -> None:
    assert worst(["same", "faster", "slower", "noisy"]) == "slower"
    assert worst({"a": "near", "b": "noisy"}) == "noisy"


def test_many_cells_are_corrected() -> None:
    """Seven pairs all slower: enough for one cell, not for eight, whose best p is 8 / 64."""
    base = [[1.0]] * 7
    new = [[1.2 + i / 1000] for i in range(7)]
    same = [[1.0 + (-1) ** i * i / 1000] for i in range(7)]
    assert judge_cells([(base, new)], RULE, paired=True)[0].status == "slower"
    many = judge_cells([(base, new)] + [(base, same)] * 7, RULE, paired=True)
    assert many[0].p_holm == pytest.approx(8 * 2 / 2**7) and many[0].status != "slower"


def test_measuring_stops_on_width_alone() -> None:
    assert precise([ratio(1.20, 1.21)], RULE) and not precise([ratio(0.98, 1.02)], RULE)
    assert not precise([ratio(1.0, 1.0, blocks=5)], RULE)


def lognormal(pairs: int, sigma: float) -> np.ndarray:
    draw = np.random.default_rng(9)
    return np.exp(sigma * (draw.normal(size=(pairs, 2, 1)) + draw.normal(size=(pairs, 2, 4))))


def test_simulation_tells_equal_from_slower_and_admits_noise() -> None:
    quiet = lognormal(60, 0.01)
    still = simulate(quiet, 1.0, RULE, Design(), 60, seed=1)
    slow = simulate(quiet, 1.05, RULE, Design(), 60, seed=1)
    assert still.slower == 0 and slow.slower >= 0.95 and slow.once >= slow.slower
    wild = simulate(lognormal(60, 0.3), 1.05, RULE, Design(8, 8), 60, seed=1)
    assert wild.noisy >= 0.8 and wild.pairs == 8
    assert simulate(quiet, 1.05, RULE, Design(), 20, seed=1, cells=4).slower >= 0.8
