"""Group figures on packed bits against loops over bools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.sparsity.bits import popcount
from exporter.sparsity.mask import Mask
from exporter.sparsity.nm import GROUPS, capacity, first_violation, group_counts, group_max
from tests.sparsity.slow import (
    prune_nm,
    slow_first_violation,
    slow_group_counts,
    slow_group_max,
)

BOOLS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=50))


def test_every_byte_is_counted_right() -> None:
    every = np.arange(256, dtype=np.uint8)[:, None]
    ones = [bin(i).count("1") for i in range(256)]
    assert group_counts(every, 8)[:, 0].tolist() == ones
    assert popcount(every) == sum(ones)
    halves = [[bin(i >> 4).count("1"), bin(i & 15).count("1")] for i in range(256)]
    assert group_counts(every, 4).tolist() == halves


@settings(deadline=None)
@given(BOOLS)
def test_group_max_equals_the_loop(kept) -> None:
    assert group_max(Mask.from_bool(kept).bits) == slow_group_max(kept)


@settings(deadline=None)
@given(BOOLS, st.sampled_from(GROUPS))
def test_group_counts_equal_the_loop(kept, m) -> None:
    counts = group_counts(Mask.from_bool(kept).bits, m)
    groups = -(-kept.shape[1] // m)
    assert counts[:, :groups].tolist() == slow_group_counts(kept, m)
    assert not counts[:, groups:].any()


@settings(deadline=None)
@given(BOOLS, st.sampled_from(GROUPS), st.integers(0, 16))
def test_first_violation_equals_the_loop(kept, m, n) -> None:
    assert first_violation(Mask.from_bool(kept), n, m) == slow_first_violation(kept, n, m)


@settings(deadline=None)
@given(st.integers(1, 70), st.sampled_from(GROUPS), st.integers(0, 16))
def test_capacity_is_the_sum_over_groups(width, m, n) -> None:
    groups = [min(m, width - c) for c in range(0, width, m)]
    assert capacity(width, n, m) == sum(min(n, w) for w in groups)


def test_one_group_in_ten_million_is_named() -> None:
    rng = np.random.default_rng(5)
    kept = np.tile(prune_nm(rng, 1024, 640, 2, 4), (8, 8))  # 10.5 million groups
    mask = Mask.from_bool(kept)
    assert first_violation(mask, 2, 4) is None
    group = kept[6007, 4 * 1279 :]
    group[int((~group).argmax())] = True
    assert first_violation(Mask.from_bool(kept), 2, 4) == (6007, 1279)


def test_other_group_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 5"):
        group_counts(np.zeros((1, 1), np.uint8), 5)


def test_nothing_has_no_group() -> None:
    assert group_max(np.zeros((0, 3), np.uint8)) == {4: 0, 8: 0, 16: 0}
