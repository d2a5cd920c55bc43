"""Ratios of medians: truth, coverage, pairing, and blocks that count as one."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.decide.ratio import MIN_BLOCKS, Ratio, centre, pair_ratios, ratio_of_medians


def test_centre_is_the_median_of_all_means_of_two() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 7))
    for row, found in zip(rows, centre(rows), strict=True):
        means = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(row, 2)]
        assert found == pytest.approx(statistics.median(means))


def test_paired_ratio_is_the_median_of_its_rounds_and_drift_cancels() -> None:
    drift = np.linspace(1, 5, 8)
    base = [[1.0 * d, 1.1 * d, 0.9 * d] for d in drift]
    new = [[1.5 * d, 9.0 * d, 1.3 * d] for d in drift]
    assert pair_ratios(base, new) == pytest.approx([1.5] * 8)
    assert pair_ratios(new, base) == pytest.approx([1 / 1.5] * 8)
    found = ratio_of_medians(base, new, paired=True)
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_drift_within_a_pair_cancels_round_by_round() -> None:
    """A machine that slows down five-fold from round to round."""
    base, new = [[1.0, 2.0, 5.0]] * 6, [[1.2, 2.4, 6.0]] * 6
    assert pair_ratios(base, new) == pytest.approx([1.2] * 6)


def test_pairs_of_unequal_rounds_take_the_ratio_of_medians() -> None:
    assert pair_ratios([[1.0, 2.0, 3.0]], [[3.0, 5.0]]) == pytest.approx([2.0])


def test_unpaired_ratio_pools_the_samples() -> None:
    base, new = [[1.0, 2.0, 3.0]] * 6, [[4.0, 6.0]] * 7
    found = ratio_of_medians(base, new, paired=False)
    assert found.value == 2.5 and found.blocks == 6 and not found.paired


@pytest.mark.parametrize("paired", [True, False])
def test_interval_covers_the_truth(paired: bool) -> None:
    """Noise between processes and within them; 10 processes; at least 85 of 100 hold 1.2."""
    draw, held = np.random.default_rng(3), 0
    for seed in range(100):
        sides = [
            level * np.exp(0.03 * draw.normal(size=(10, 1)) + 0.02 * draw.normal(size=(10, 5)))
            for level in (1.0, 1.2)
        ]
        base, new = (s.tolist() for s in sides)
        found = ratio_of_medians(base, new, paired=paired, seed=seed, resamples=499)
        assert found.low <= found.value <= found.high
        held += found.low <= 1.2 <= found.high
    assert held >= 85


def test_more_samples_of_the_same_processes_do_not_narrow_it() -> None:
    """Ten copies of each sample say nothing new about other processes."""
    draw = np.random.default_rng(5)
    base, new = (np.exp(0.05 * draw.normal(size=(8, 3))).tolist() for _ in range(2))
    once = ratio_of_medians(base, new, paired=False)
    often = ratio_of_medians([b * 10 for b in base], [n * 10 for n in new], paired=False)
    assert (once.low, once.high) == pytest.approx((often.low, often.high))


@given(st.floats(0.2, 5), st.booleans())
def test_it_scales_and_turns_round(factor: float, paired: bool) -> None:
    base = [[1.0, 1.1], [1.2, 1.0], [0.9, 1.0]]
    new = [[1.3, 1.1], [1.2, 1.4], [1.0, 1.2]]
    plain = ratio_of_medians(base, new, paired=paired, resamples=99)
    scaled = ratio_of_medians(
        base, [[v * factor for v in b] for b in new], paired=paired, resamples=99
    )
    assert scaled.high == pytest.approx(plain.high * factor)
    assert plain.inverse().inverse().low == pytest.approx(plain.low)
    assert plain.inverse().low == pytest.approx(1 / plain.high)


def test_few_blocks_are_said_to_be_few() -> None:
    one = [[1.0, 1.1]]
    assert not ratio_of_medians(one * (MIN_BLOCKS - 1), one * 9, paired=False).supported
    assert ratio_of_medians(one * MIN_BLOCKS, one * 9, paired=False).supported
    assert Ratio(2.0, 1.9, 2.1, 6, True).half_width == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("base", "new", "paired"),
    [
        ([], [[1.0]], False),
        ([[1.0]], [[]], False),
        ([[1.0]], [[0.0]], False),
        ([[1.0]], [[float("nan")]], False),
        ([[1.0]], [[1.0], [1.0]], True),
    ],
)
def test_what_is_no_measurement_is_an_error(
    base: list[list[float]], new: list[list[float]], paired: bool
) -> None:
    with pytest.raises(ValueError, match="without samples|above zero|no pairs"):
        ratio_of_medians(base, new, paired=paired)
