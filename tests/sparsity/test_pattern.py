"""Verdicts: each rule of docs/reference/patterns.md, and the loop that states them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.sparsity.count import PatternCounter, mask_pattern
from exporter.sparsity.mask import Mask
from exporter.sparsity.pattern import LinearPattern, Pattern, model_pattern
from tests.sparsity.slow import Bools, prune_nm, slow_verdict


def judge(kept: Bools, module: str = "m") -> LinearPattern:
    return mask_pattern(module, Mask.from_bool(kept))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("m", [4, 8, 16])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(64, 64), (48, 576), (576, 1536)])
def test_nm_is_found_with_the_smallest_m(m, share, shape) -> None:
    n = int(m * share)
    got = judge(prune_nm(rng(m), *shape, n, m))
    assert (got.pattern.label, str(got.pattern)) == (f"{n}:{m}", f"{n}:{m}")
    assert got.pattern.density == share


@pytest.mark.parametrize(("n", "m"), [(1, 8), (3, 8), (5, 8), (7, 8), (1, 16), (15, 16), (3, 4)])
def test_odd_nm_is_found(n, m) -> None:
    assert judge(prune_nm(rng(n), 64, 256, n, m)).pattern.label == f"{n}:{m}"


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9, 0.95])
@pytest.mark.parametrize("per_row", [False, True])
def test_unstructured_is_not_called_nm(sparsity, per_row) -> None:
    scores = rng(1).random((192, 576))
    cut = np.quantile(scores, sparsity, axis=1 if per_row else None, keepdims=True)
    got = judge(scores > cut)
    assert got.pattern.kind == "unstructured"
    assert got.sparsity == pytest.approx(sparsity, abs=2e-3)
    assert str(got.pattern) == f"unstructured, density {1 - got.sparsity:.1%}"


def test_nm_along_the_output_axis_is_unstructured() -> None:
    kept = prune_nm(rng(2), 256, 128, 2, 4).T.copy()
    assert judge(kept).pattern.kind == "unstructured"
    assert judge(kept.T.copy()).pattern.label == "2:4"


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (4, 8), (8, 16), (14, 16), (12, 16), (1, 4)])
def test_one_group_over_the_bound_breaks_the_verdict(n, m) -> None:
    kept = prune_nm(rng(3), 128, 256, n, m)
    group = kept[77, m * 3 : m * 4]
    group[int((~group).argmax())] = True
    got = judge(kept)
    assert got.group_max[m] == n + 1
    assert got.pattern.kind == "unstructured"


def test_zeros_beyond_the_bound_are_allowed_up_to_a_twentieth() -> None:
    kept = prune_nm(rng(4), 128, 256, 2, 4)
    extra = kept & (rng(5).random(kept.shape) < 0.04)
    assert judge(kept & ~extra).pattern.label == "2:4"
    extra = kept & (rng(5).random(kept.shape) < 0.07)
    assert judge(kept & ~extra).pattern.kind == "unstructured"


def test_zero_rows_do_not_hide_nm() -> None:
    kept = prune_nm(rng(6), 128, 256, 2, 4)
    kept[:30] = False
    got = judge(kept)
    assert (got.pattern.label, got.zero_rows) == ("2:4", 30)


def test_a_ragged_last_group_keeps_at_most_its_width() -> None:
    kept = prune_nm(rng(7), 64, 256, 2, 4)
    ragged = np.concatenate([kept, np.ones((64, 2), bool)], axis=1)
    assert judge(ragged).pattern.label == "2:4"
    ragged = np.concatenate([kept, np.ones((64, 3), bool)], axis=1)
    assert judge(ragged).pattern.label == "4:8"  # 3 of 4 breaks 2:4, 3 of 8 keeps 4:8


def test_rows_and_columns() -> None:
    kept = np.ones((40, 60), bool)
    kept[10:30] = False
    assert str(judge(kept).pattern) == "rows, density 50.0%"
    assert str(judge(kept.T.copy()).pattern) == "columns, density 50.0%"
    kept[:, :6] = False
    assert judge(kept).pattern.kind == "rows"  # both: what carries more zeros
    kept[35, 50] = False  # a stray zero, under 1 % of what remains
    assert judge(kept).pattern.kind == "rows"
    kept[30:40, 20:22] = False
    assert judge(kept).pattern.kind == "unstructured"


def test_nothing_kept_is_rows() -> None:
    got = judge(np.zeros((8, 8), bool))
    assert (str(got.pattern), got.zero_rows, got.zero_columns) == ("rows, density 0.0%", 8, 8)


def test_few_zeros_are_dense() -> None:
    kept = np.ones((100, 100), bool)
    assert str(judge(kept).pattern) == "dense"
    kept[0, :99] = False
    assert judge(kept).pattern.kind == "dense"
    kept[0] = False
    assert judge(kept).pattern.kind == "rows"


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_verdict_equals_the_loop(kept) -> None:
    assert judge(kept).pattern.label == slow_verdict(kept)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_near_misses_equal_the_loop(data) -> None:
    m = data.draw(st.sampled_from([4, 8, 16]))
    n = data.draw(st.integers(1, m))
    kept = prune_nm(rng(data.draw(st.integers(0, 999))), data.draw(st.integers(1, 12)), 48, n, m)
    flips = data.draw(st.lists(st.integers(0, kept.size - 1), max_size=40))
    kept.reshape(-1)[flips] ^= True
    width = data.draw(st.integers(33, 48))
    kept = kept[:, :width].copy()
    assert judge(kept).pattern.label == slow_verdict(kept)


@settings(deadline=None)
@given(hnp.arrays(np.bool_, (17, 21)), st.integers(1, 20))
def test_blocks_do_not_change_the_counts(kept, step) -> None:
    mask = Mask.from_bool(kept)
    counter = PatternCounter("m", kept.shape)
    for r0 in range(0, 17, step):
        block = mask.bits[r0 : r0 + step]
        counter.add(block, int(kept[r0 : r0 + step].sum()) if step % 2 else None)
    counter.add(mask.bits[:0])
    assert counter.result() == mask_pattern("m", mask)
    assert counter.result().zero_columns == int((~kept).all(axis=0).sum())
    assert counter.result().zero_rows == int((~kept).all(axis=1).sum())


def of(label: str) -> LinearPattern:
    """A linear with that verdict, 32 x 64."""
    kept = np.ones((32, 64), bool)
    if ":" in label:
        n, m = map(int, label.split(":"))
        kept = prune_nm(rng(9), 32, 64, n, m)
    elif label == "unstructured":
        kept = rng(9).random((32, 64)) > 0.7
    elif label == "rows":
        kept[:8] = False
    elif label == "columns":
        kept[:, :16] = False
    got = judge(kept)
    assert got.pattern.label == label
    return got


@pytest.mark.parametrize(
    ("labels", "want", "text"),
    [
        ([], "dense", "dense"),
        (["dense", "dense"], "dense", "dense"),
        (["2:4", "2:4"], "2:4", "2:4"),
        (["2:8", "3:8", "2:8"], "mixed n:m", "mixed n:8, density 29.2%"),
        (["2:4", "3:8"], "mixed n:m", "mixed n:m, density 43.8%"),
        (["2:4", "dense"], "mixed n:m", "mixed n:4, density 75.0%"),
        (["unstructured", "dense"], "unstructured", None),
        (["rows", "rows"], "structured", "structured, density 75.0%"),
        (["rows", "columns", "dense"], "structured", "structured, density 83.3%"),
        (["2:4", "unstructured"], "mixed", None),
        (["2:4", "rows"], "mixed", "mixed, density 62.5%"),
    ],
)
def test_model_verdict(labels, want, text) -> None:
    got = model_pattern([of(label) for label in labels])
    assert got.label == want
    if text:
        assert str(got) == text
    assert dict(got.labels) == {label: labels.count(label) for label in set(labels)}


def test_model_density_is_weighted_by_size() -> None:
    big, small = np.ones((64, 64), bool), np.zeros((8, 8), bool)
    got = model_pattern([judge(big), judge(small)])
    assert got.density == 64 * 64 / (64 * 64 + 64)


def test_a_pattern_prints_its_density() -> None:
    assert str(Pattern("unstructured", 0.3)) == "unstructured, density 30.0%"
    assert str(Pattern("n:m", 0.5, 2, 4)) == "2:4"
