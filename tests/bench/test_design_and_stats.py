"""Order of the rounds, intervals and outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.design import paired_order
from bench.stats import MIN_ROUNDS, find_outliers, median_interval, speedup_interval
from bench.workloads import Workload
from exporter.errors import UsageError


@given(st.integers(0, 40), st.integers(0, 2**32))
def test_order_is_balanced_in_every_block_of_two(rounds: int, seed: int) -> None:
    order = paired_order(rounds, seed)
    assert len(order) == rounds
    for first, second in zip(order[::2], order[1::2], strict=False):
        assert {first, second} == {"AB", "BA"}


def test_order_is_random_over_seeds_and_repeats_by_seed() -> None:
    starts = {paired_order(8, seed) for seed in range(40)}
    assert len(starts) > 8
    assert paired_order(8, 3) == paired_order(8, 3)


def test_interval_covers_a_known_ratio() -> None:
    """Paired noise of 5 % around 1.5: the 95 % interval holds it in at least 90 of 100 runs."""
    draw = np.random.default_rng(11)
    covered = 0
    for seed in range(100):
        drift = 1 + 0.3 * draw.random(12)  # hits both halves of a round
        dense = 1.5 * drift * (1 + 0.05 * draw.normal(size=12))
        interval = speedup_interval([[v] for v in dense], [[v] for v in drift], seed)
        assert interval.low <= interval.median <= interval.high
        covered += interval.low <= 1.5 <= interval.high
    assert covered >= 90


def test_pairing_removes_drift() -> None:
    drift = np.linspace(1, 4, 10)
    interval = speedup_interval([[2 * v] for v in drift], [[v] for v in drift], 0)
    assert (interval.low, interval.median, interval.high) == pytest.approx((2.0, 2.0, 2.0))


def test_interval_repeats_by_seed() -> None:
    values = [1.0, 1.1, 0.9, 1.3, 1.2, 1.05, 0.97]
    assert median_interval(values, 4) == median_interval(values, 4)


def test_too_few_rounds_give_the_range_and_say_so() -> None:
    interval = median_interval([1.0, 3.0, 2.0, 5.0, 4.0], 0)
    assert not interval.supported and (interval.low, interval.high) == (1.0, 5.0)
    assert median_interval([1.0] * MIN_ROUNDS, 0).supported


def test_unequal_sides_are_an_error() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        speedup_interval([[1.0], [2.0]], [[1.0]], 0)
    with pytest.raises(ValueError, match="no values"):
        median_interval([], 0)


def test_outliers_are_named_and_stay() -> None:
    values = [1.0, 1.01, 0.99, 1.02, 0.98, 9.0]
    interval = median_interval(values, 0)
    assert interval.outliers == [5] and interval.n == 6
    assert interval.median == pytest.approx(1.005)
    assert find_outliers(np.ones(8)) == []


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.floats(0.5, 4))
def test_median_scales_with_the_values(values: list[float], factor: float) -> None:
    plain = median_interval(values, 0)
    scaled = median_interval([v * factor for v in values], 0)
    assert scaled.median == pytest.approx(plain.median * factor)
    assert scaled.high == pytest.approx(plain.high * factor)


def test_prompt_repeats_by_seed_and_stays_in_the_vocabulary() -> None:
    prompt = Workload(50, 2, seed=1).prompt(7)
    assert prompt == Workload(50, 2, seed=1).prompt(7) != Workload(50, 2, seed=2).prompt(7)
    assert len(prompt) == 50 and set(prompt) <= set(range(7))


@pytest.mark.parametrize("wrong", [(0, 4), (4, 1)])
def test_workload_of_nothing_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(UsageError):
        Workload(*wrong)
