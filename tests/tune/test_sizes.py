"""Ranks, schedules, selection: exact sums, bounds, and the public codes' arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import UsageError
from harness.methods.errors import relative_error
from harness.methods.iterative_settings import scheduled, shared_out
from harness.methods.losa_layer import grow, shrink
from harness.methods.ranks import allocate, allocate_literal
from harness.methods.s2ft_select import combine, counts, draw_joint, pick, widen
from harness.methods.settings import parse_settings
from harness.methods.sparse_lora import LowRankSettings


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.data())
def test_ranks_meet_their_sum_and_bounds_and_follow_the_errors(errors, data):
    total = data.draw(st.integers(len(errors), 16 * len(errors)))
    ranks = allocate(errors, total, 1, 16)
    assert sum(ranks) == total
    assert all(1 <= r <= 16 for r in ranks)
    pairs = sorted(zip(errors, ranks, strict=True))
    assert all(q >= r - 1 for (_, r), (_, q) in zip(pairs, pairs[1:], strict=False))


def test_one_dominant_block_does_not_break_the_budget_as_in_the_public_code():
    errors = [1000.0] + [1.0] * 31
    assert sum(allocate(errors, 256, 1, 16)) == 256
    assert sum(allocate_literal(errors, 8, 1, 16)) == 78  # 16 + 31 + one pass of 31


def test_ranks_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="bounds 1 and 16"):
        allocate([1.0, 1.0], 33, 1, 16)


def test_the_cubic_schedule_of_the_paper():
    got = [round(scheduled(0.7, t, 5, "cubic"), 4) for t in range(1, 6)]
    assert got == [0.3416, 0.5488, 0.6552, 0.6944, 0.7]
    assert scheduled(0.7, 1, 5, "oneshot") == 0.7
    assert shared_out(11, 3) == [3, 4, 4]


def factors(rank, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rank, 7, generator=g), torch.randn(9, rank, generator=g)


def test_growing_leaves_the_product():
    a, b = factors(3)
    more_a, more_b = grow(a, b, 5, torch.Generator())
    assert more_a.shape == (5, 7) and torch.equal(more_b[:, 3:], torch.zeros(9, 2))
    torch.testing.assert_close(more_b @ more_a, b @ a)


def test_shrinking_drops_exactly_the_rest_and_fold_gives_it_back():
    a, b = factors(5)
    rest = b[:, 2:] @ a[2:]
    cut_a, cut_b, none = shrink(a, b, 2, "truncate")
    assert none is None
    torch.testing.assert_close(b @ a - cut_b @ cut_a, rest)
    fold_a, fold_b, folded = shrink(a, b, 2, "fold")
    torch.testing.assert_close(fold_b @ fold_a + folded, b @ a)


def test_svd_shrinking_is_the_best_of_its_rank():
    a, b = factors(5)
    best_a, best_b, _ = shrink(a, b, 2, "svd")
    left = torch.linalg.svdvals(b @ a)[2:].square().sum().sqrt()
    torch.testing.assert_close((b @ a - best_b @ best_a).norm(), left, rtol=1e-4, atol=1e-5)


def test_relative_error_is_the_mean_over_channels():
    want, got = torch.tensor([[[3.0, 0.0, 2.0]], [[4.0, 0.0, 0.0]]]), torch.zeros(2, 1, 3)
    got[0, 0, 2] = 1.0
    assert relative_error(want, got) == pytest.approx((1.0 + 0.0 + 0.25) / 3)
    got[0, 0, 1] = 1.0  # where the dense model has nothing
    assert relative_error(want, got) == pytest.approx((1.0 + 1.0 + 0.25) / 3)


def test_counts_by_layer():
    assert counts(0.25, 4, 8, "uniform") == [2, 2, 2, 2]
    rising = counts(0.25, 4, 8, "increasing")
    assert sum(rising) == 8 and rising == sorted(rising)
    assert counts(0.25, 4, 8, "decreasing") == rising[::-1]
    assert counts(1.0, 3, 5, "increasing") == [5, 5, 5]
    with pytest.raises(UsageError):
        counts(1.5, 3, 5, "uniform")


def test_the_joint_draw_is_that_of_the_public_settings_for_llama_2():
    drawn = draw_joint(
        [("v", 0.0, 32), ("o", 0.052, 32), ("u", 0.0, 11008), ("d", 0.02, 11008)], 32, 0
    )
    heads, channels = (sum(map(len, drawn[n])) for n in ("o", "d"))
    assert (heads, channels) == (53, 7045)
    assert (heads * 128 + channels) * 4096 == 56_643_584
    assert all(own == sorted(own) for own in drawn["d"])


def test_selection_by_score_takes_either_end():
    rng = np.random.default_rng(0)
    scores = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    assert pick(scores, 2, True, rng, 5) == [2, 4]
    assert pick(scores, 2, False, rng, 5) == [1, 3]
    parts = {"weight": np.array([1.0, 2.0]), "activation": np.array([5.0, 1.0])}
    assert combine("S", parts).tolist() == [5.0, 2.0]
    assert combine("R", parts) is None
    assert widen([2, 0], 3) == [0, 1, 2, 6, 7, 8]


def test_settings_from_text():
    assert parse_settings(LowRankSettings, ["rank=4"], "lora") == LowRankSettings(4, 16.0)
    for bad in (["rank=x"], ["size=3"], ["rank=1", "rank=2"], ["rank"]):
        with pytest.raises(UsageError):
            parse_settings(LowRankSettings, bad, "lora")
