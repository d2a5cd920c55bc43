"""Orders of channels: undone they give the base back; whole groups keep every N:M pattern."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import InputRefused
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.sparsity.nm import GROUPS, first_violation, group_max
from exporter.sparsity.permute import (
    as_order,
    broken_groups,
    inverse,
    permute_columns,
    permute_mask_columns,
    permute_mask_rows,
    permuted_rows,
    whole_groups,
)
from tests.sparsity.slow import prune_nm


def orders(size: int) -> st.SearchStrategy[np.ndarray]:
    return st.permutations(range(size)).map(lambda p: as_order(p, size))


MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
SETTINGS = settings(deadline=None, max_examples=60)


@SETTINGS
@given(MATRICES, st.data())
def test_permute_then_unpermute_is_the_identity(weight, data) -> None:
    columns = data.draw(orders(weight.shape[1]))
    rows = data.draw(orders(weight.shape[0]))
    moved = permute_columns(weight[rows], columns)
    back = permute_columns(moved, inverse(columns))
    read = permuted_rows(lambda a, b: back[a:b], inverse(rows))
    cut = data.draw(st.integers(0, len(weight)))
    again = np.concatenate([read(0, cut), read(cut, len(weight))])
    assert again.tobytes() == weight.tobytes()
    assert np.array_equal(inverse(inverse(columns)), columns)


@SETTINGS
@given(MATRICES, st.data())
def test_permuted_rows_are_numpy_s_and_blocks_do_not_matter(weight, data) -> None:
    order = data.draw(orders(len(weight)))
    asked: list[int] = []

    def rows(a: int, b: int) -> np.ndarray:
        asked.append(b - a)
        return weight[a:b].copy()

    read = permuted_rows(rows, order)
    step = data.draw(st.integers(1, len(weight)))
    blocks = [read(r, min(len(weight), r + step)) for r in range(0, len(weight), step)]
    assert np.concatenate(blocks).tobytes() == weight[order].tobytes()
    assert sum(asked) == len(weight)


@SETTINGS
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)), st.data())
def test_masks_move_as_their_weights_do(kept, data) -> None:
    mask = Mask.from_bool(kept)
    columns, rows = data.draw(orders(kept.shape[1])), data.draw(orders(kept.shape[0]))
    assert permute_mask_columns(mask, columns) == Mask.from_bool(kept[:, columns])
    assert permute_mask_rows(mask, rows) == Mask.from_bool(kept[rows])


@SETTINGS
@given(st.integers(1, 50), st.sampled_from(GROUPS), st.data())
def test_whole_group_moves_keep_every_pattern(width, m, data) -> None:
    kept = data.draw(hnp.arrays(np.bool_, (6, width)))
    order = whole_groups(data.draw(orders(width)), m)
    assert sorted(order) == list(range(width))
    assert broken_groups(order, m) == 0
    moved = permute_mask_columns(Mask.from_bool(kept), order)
    for smaller in (g for g in GROUPS if g <= m):  # each divides m
        before, after = group_max(Mask.from_bool(kept).bits), group_max(moved.bits)
        assert before[smaller] == after[smaller]


@SETTINGS
@given(st.integers(1, 40), st.sampled_from(GROUPS), st.data())
def test_broken_groups_are_those_of_two_sources(width, m, data) -> None:
    order = data.draw(orders(width))
    slow = [len({int(c) // m for c in order[g : g + m]}) > 1 for g in range(0, width, m)]
    assert broken_groups(order, m) == sum(slow)


@SETTINGS
@given(st.sampled_from(GROUPS), st.data())
def test_an_order_that_splits_a_group_breaks_some_pattern(m, data) -> None:
    width = 3 * m
    order = data.draw(orders(width))
    assume(broken_groups(order, m))
    # The two members that a group took from elsewhere: prune to them, then 1:M no longer holds.
    group = next(g for g in range(3) if len({*(order[g * m : (g + 1) * m] // m)}) > 1)
    members = order[group * m : (group + 1) * m]
    one, other = members[0], members[(members // m != members[0] // m).argmax()]
    kept = np.zeros((1, width), bool)
    kept[0, [one, other]] = True
    assert first_violation(Mask.from_bool(kept), 1, m) is None
    assert first_violation(Mask.from_bool(kept[:, order]), 1, m) == (0, group)


def test_whole_groups_follow_the_first_channel_named() -> None:
    order = as_order([9, 4, 0, 1, 2, 3, 5, 6, 7, 8], 10)
    assert whole_groups(order, 4).tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 8, 9]
    same = as_order(range(10), 10)
    assert np.array_equal(whole_groups(same, 4), same)


def test_s2ft_s_order_breaks_a_fifth_to_a_third_of_the_groups_and_is_undone() -> None:
    rng = np.random.default_rng(0)
    mask = Mask.from_bool(prune_nm(rng, 32, 256, 2, 4))
    trained = np.sort(rng.choice(256, 100, replace=False))
    order = as_order([*trained, *sorted(set(range(256)) - {*trained.tolist()})], 256)
    permuted = permute_mask_columns(mask, order)
    assert str(mask_pattern("down", permuted).pattern) != "2:4"
    counts = permuted.rows().reshape(32, 64, 4).sum(axis=-1)
    assert 0.15 < (counts > 2).mean() < 0.4
    back = permute_mask_columns(permuted, inverse(order))
    assert back == mask
    assert mask_pattern("down", back).pattern.label == "2:4"
    assert mask_pattern("d", permute_mask_columns(mask, whole_groups(order, 4))).pattern.n == 2


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0, 1], "2 entries"),
        ([0, 1, 1], "channel 1 stands there 2 times"),
        ([0, 1, 3], "channel 3 at place 2"),
        ([-1, 1, 2], "channel -1 at place 0"),
        ([0.0, 1.0, 2.0], "float64[3]"),
        ([[0, 1, 2]], "int64[1, 3]"),
    ],
)
def test_what_is_no_order_is_refused(values, word) -> None:
    with pytest.raises(InputRefused) as caught:
        as_order(values, 3, file="order.json", tensor="down_proj")
    assert caught.value.code == "permutation-invalid"
    assert word in caught.value.found
    assert (caught.value.file, caught.value.tensor) == ("order.json", "down_proj")


def test_unsigned_orders_and_empty_axes_are_lawful() -> None:
    order = as_order(np.array([2, 0, 1], np.uint8), 3)
    assert order.dtype == np.int64
    assert inverse(order).tolist() == [1, 2, 0]
    none = as_order(np.array([], np.int64), 0)
    assert broken_groups(none, 4) == 0
    assert permuted_rows(lambda a, b: np.zeros((b - a, 3)), none)(0, 0).shape == (0, 3)
