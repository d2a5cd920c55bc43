"""Mixed N:M: the figures that the rules are stated with, and their laws for any blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import UsageError
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.sparsity.mixed import Bounds, MixedNM, equal_deviation, spend_budget
from exporter.sparsity.nm import GROUPS, group_max
from tests.sparsity.slow import prune_nm

FALLING = [1.0 - i / 64 for i in range(32)]  # importance: the first block matters most


def ups_and_downs(mixed: MixedNM) -> tuple[int, int]:
    return (
        sum(n == mixed.n0 + 1 for n in mixed.kept),
        sum(n == mixed.n0 - 1 for n in mixed.kept),
    )


# --- rule A ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "delta", "k"), [(8, 0.03, 3), (4, 0.03, 1), (8, 0.0625, 8), (4, 0.125, 8), (8, 0.0, 0)]
)
def test_32_blocks_at_the_stated_deviations(m: int, delta: float, k: int) -> None:
    mixed = equal_deviation(FALLING, n0=2, m=m, delta=delta)
    assert ups_and_downs(mixed) == (k, k)
    assert mixed.kept == (3,) * k + (2,) * (32 - 2 * k) + (1,) * k
    assert mixed.density == 2 / m
    assert mixed.unused == 0


def test_one_up_and_one_down_only_if_the_user_insists() -> None:
    assert ups_and_downs(equal_deviation(FALLING, n0=2, m=4, delta=0.01)) == (0, 0)
    insisted = equal_deviation(FALLING, n0=2, m=4, delta=0.01, insist=True)
    assert ups_and_downs(insisted) == (1, 1)
    assert insisted.labels[0] == "3:4" and insisted.labels[-1] == "1:4"
    assert equal_deviation([1.0], n0=2, m=4, delta=0.01, insist=True).kept == (2,)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), max_size=40), st.floats(0, 2), st.sampled_from(GROUPS), st.data())
def test_equal_deviation_keeps_density_and_order(
    importance: list[float], delta: float, m: int, data: Any
) -> None:
    n0 = data.draw(st.integers(2, m - 1))
    mixed = equal_deviation(importance, n0=n0, m=m, delta=delta)
    up, down = ups_and_downs(mixed)
    assert up == down <= len(importance) // 2
    assert sum(mixed.kept) == n0 * len(importance)
    mean = sum(abs(n - n0) for n in mixed.kept) / (m * max(1, len(importance)))
    assert mean <= delta + 1e-9
    for a, n in zip(importance, mixed.kept, strict=True):
        for b, other in zip(importance, mixed.kept, strict=True):
            assert a <= b or n >= other  # who matters more never keeps less


def test_blocks_of_other_sizes_miss_the_mean_and_say_so() -> None:
    mixed = equal_deviation([2, 1], n0=2, m=8, delta=0.125, sizes=[300, 100])
    assert mixed.kept == (3, 1)
    assert mixed.density == (3 * 300 + 100) / (8 * 400)
    assert mixed.unused == -(300 - 100) / 8


# --- rule B ----------------------------------------------------------------------------------


def test_rates_within_losa_s_deviation_round_back_to_uniform() -> None:
    for m, delta, rate in ((8, 0.03, 0.75), (4, 0.01, 0.5)):
        rates = list(np.linspace(rate - delta, rate + delta, 32))
        nearest = {round((1 - r) * m) for r in rates}
        assert nearest == {2}
        mixed = spend_budget(rates, FALLING, [100] * 32, n0=2, m=m)
        assert set(mixed.kept) == {2}


def test_rates_half_a_step_away_mix() -> None:
    rates = list(np.linspace(0.75 - 0.125, 0.75 + 0.125, 32))  # one step of 1/8 either way
    mixed = spend_budget(rates, FALLING, [100] * 32, n0=2, m=8)
    assert set(mixed.kept) == {1, 2, 3}
    assert list(mixed.kept) == sorted(mixed.kept, reverse=True)
    assert mixed.density == 0.25


def test_larger_remainders_come_first_then_importance() -> None:
    # 2.5, 2.25, 1.25 wished, and a budget of 6: the half goes first.
    rates = [1 - 2.5 / 8, 1 - 2.25 / 8, 1 - 1.25 / 8]
    assert spend_budget(rates, [0, 1, 2], [8, 8, 8], n0=2, m=8).kept == (3, 2, 1)
    equal = [1 - 1.5 / 8] * 3
    assert spend_budget(equal, [0, 2, 1], [8, 8, 8], n0=2, m=8).kept == (2, 2, 2)
    # Room for one block only: the most important of equal remainders.
    assert spend_budget([*equal[:2], 0.75], [0, 2, 1], [8, 8, 80], n0=2, m=8).kept == (2, 2, 2)
    assert spend_budget([0.8125, 0.8125, 0.625], [0, 2, 1], [8, 8, 8], n0=2, m=8).kept == (1, 2, 3)


def test_over_the_budget_the_least_important_give_first() -> None:
    assert spend_budget([0.625] * 3, [3, 1, 2], [8, 8, 8], n0=2, m=8).kept == (2, 2, 2)
    # Two steps too many: one from each of the two that matter least.
    assert spend_budget([0.625, 0.625, 0.75], [3, 1, 2], [8, 8, 8], n0=2, m=8).kept == (3, 2, 1)
    assert spend_budget([0.625, 0.75, 0.75], [3, 1, 2], [8, 8, 8], n0=2, m=8).kept == (3, 1, 2)


def slow_spend(
    rates: list[float], importance: list[float], sizes: list[int], n0: int, m: int, least: int
) -> list[int]:
    """The rule in exact fractions, one step at a time, no clever order."""
    from fractions import Fraction

    wish = [Fraction(round((1 - r) * m * 10**6), 10**6) for r in rates]
    kept = [min(max(w.numerator // w.denominator, least), m) for w in wish]
    frac = [w - w.numerator // w.denominator for w in wish]
    blocks, budget = range(len(rates)), n0 * sum(sizes)

    def spent() -> int:
        return sum(n * s for n, s in zip(kept, sizes, strict=True))

    while spent() > budget:
        for i in sorted(blocks, key=lambda i: (importance[i], -i)):
            if spent() > budget and kept[i] > least:
                kept[i] -= 1
    before = None
    while before != kept:
        before = list(kept)
        for i in sorted(blocks, key=lambda i: (-frac[i], -importance[i], i)):
            if kept[i] < m and spent() + sizes[i] <= budget:
                kept[i] += 1
    return kept


BLOCKS = st.lists(
    st.tuples(
        st.integers(0, 100).map(lambda x: x / 100),
        st.integers(0, 9).map(float),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(BLOCKS, st.sampled_from(GROUPS), st.data())
def test_the_budget_holds_and_little_is_left(
    blocks: list[tuple[float, float, int]], m: int, data: Any
) -> None:
    n0 = data.draw(st.integers(1, m))
    least = data.draw(st.integers(1, n0))
    most = data.draw(st.integers(n0, m))
    rates, importance, sizes = map(list, zip(*blocks, strict=True))
    mixed = spend_budget(rates, importance, sizes, n0=n0, m=m, bounds=Bounds(least, most))
    assert all(least <= n <= most for n in mixed.kept)
    spent = sum(n * s for n, s in zip(mixed.kept, sizes, strict=True))
    assert spent <= n0 * sum(sizes)  # never exceeded
    growable = [s for n, s in zip(mixed.kept, sizes, strict=True) if n < most]
    if growable:
        assert mixed.unused * m < min(growable)
    assert mixed.density == pytest.approx(spent / (m * sum(sizes)))
    assert mixed.density <= n0 / m
    if most == m:
        assert list(mixed.kept) == slow_spend(rates, importance, sizes, n0, m, least)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.sampled_from(GROUPS), st.data())
def test_equal_blocks_leave_nothing(rates: list[float], m: int, data: Any) -> None:
    n0 = data.draw(st.integers(1, m))
    mixed = spend_budget(rates, [0.0] * len(rates), [7] * len(rates), n0=n0, m=m)
    assert mixed.unused == 0
    assert mixed.density == n0 / m


# --- guards ----------------------------------------------------------------------------------


def test_a_2_4_kernel_takes_two_of_eight_at_most() -> None:
    kernel = Bounds.of_2_4_kernel()
    rates = list(np.linspace(0.6, 0.99, 32))
    mixed = spend_budget(rates, FALLING, [64] * 32, n0=1, m=8, bounds=kernel)
    assert set(mixed.kept) <= {1, 2}
    rng = np.random.default_rng(0)
    for n in {*mixed.kept, 2}:  # and each is lawful 2:4
        assert group_max(Mask.from_bool(prune_nm(rng, 16, 64, n, 8)).bits)[4] <= 2
    assert group_max(Mask.from_bool(prune_nm(rng, 64, 64, 3, 8)).bits)[4] == 3
    # At a mean of 2 there is no room to mix.
    assert set(spend_budget(rates, FALLING, [64] * 32, n0=2, m=8, bounds=kernel).kept) == {2}
    with pytest.raises(UsageError, match="mixed N:M"):
        equal_deviation(FALLING, n0=2, m=8, delta=0.03, bounds=kernel)
    assert equal_deviation(FALLING, n0=2, m=8, delta=0.0, bounds=kernel).density == 0.25


def test_no_block_is_pruned_whole() -> None:
    assert min(spend_budget([1.0, 1.0, 0.0], [0, 0, 1], [9, 9, 9], n0=2, m=4).kept) == 1
    with pytest.raises(UsageError):
        equal_deviation(FALLING, n0=1, m=4, delta=0.125)
    with pytest.raises(UsageError):
        spend_budget([0.5], [0], [4], n0=1, m=4, bounds=Bounds(least=0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: spend_budget([0.5], [0], [4], n0=2, m=5),
        lambda: spend_budget([0.5], [0], [4], n0=5, m=4),
        lambda: spend_budget([0.5], [0], [4], n0=3, m=8, bounds=Bounds(1, 2)),
        lambda: spend_budget([0.5, 0.5], [0], [4, 4], n0=2, m=4),
        lambda: spend_budget([], [], [], n0=2, m=4),
        lambda: spend_budget([1.5], [0], [4], n0=2, m=4),
        lambda: spend_budget([float("nan")], [0], [4], n0=2, m=4),
        lambda: spend_budget([0.5], [float("inf")], [4], n0=2, m=4),
        lambda: spend_budget([0.5], [0], [0], n0=2, m=4),
        lambda: equal_deviation([1, 2], n0=2, m=4, delta=-0.1),
        lambda: equal_deviation([1, 2], n0=2, m=4, delta=0.1, sizes=[1]),
        lambda: equal_deviation([1, 2], n0=2, m=4, delta=float("nan")),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.code == "usage"
    assert caught.value.expected


def test_masks_made_by_the_result_are_found_to_be_it() -> None:
    mixed = equal_deviation([3.0, 2.0, 1.0], n0=2, m=8, delta=0.1)
    rng = np.random.default_rng(0)
    found = [
        mask_pattern("m", Mask.from_bool(prune_nm(rng, 32, 64, n, 8))).pattern for n in mixed.kept
    ]
    assert tuple(p.label for p in found) == mixed.labels == ("3:8", "2:8", "1:8")
    assert np.mean([p.density for p in found]) == mixed.density
