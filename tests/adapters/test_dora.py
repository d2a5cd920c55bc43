"""DoRA's delta against a slow float64 one: rows, columns, masks, blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.adapters.dora import DoraDelta
from exporter.adapters.lowrank import LowRankDelta

OUT, IN, RANK, SCALE = 150, 70, 3, 0.75


def parts(seed: int = 0, size: int = OUT) -> tuple[Any, Any, Any, Any]:
    """W with zeros, A, B and m, float32."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((OUT, IN)) * (rng.random((OUT, IN)) < 0.5)
    a, b = rng.standard_normal((RANK, IN)), rng.standard_normal((OUT, RANK))
    magnitude = rng.standard_normal(size)  # training may turn a sign
    return tuple(v.astype(np.float32) for v in (weight, a, b, magnitude))  # type: ignore[return-value]


def slow(weight: Any, a: Any, b: Any, magnitude: Any, mask: Any, axis: int) -> Any:
    """W', by one norm after the other."""
    weight, a, b, magnitude = (v.astype(np.float64) for v in (weight, a, b, magnitude))
    total = weight + SCALE * mask * (b @ a)
    if axis == 0:
        return slow(weight.T, b.T, a.T, magnitude, np.broadcast_to(mask, total.shape).T, 1).T
    rows = [m / np.linalg.norm(row) * row for m, row in zip(magnitude, total, strict=True)]
    return np.stack(rows)


def bound(weight: Any, a: Any, b: Any, magnitude: Any, mask: Any = None, by_column: bool = False):
    inner = LowRankDelta((OUT, IN), lambda: a, lambda: b, SCALE)
    delta = DoraDelta(inner, lambda: magnitude, by_column)
    kept = None if mask is None else lambda r0, r1: mask[r0:r1]
    return delta.bind(lambda r0, r1: weight[r0:r1].copy(), kept)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_equals_the_slow_one(by_column: bool, masked: bool):
    weight, a, b, magnitude = parts(size=IN if by_column else OUT)
    mask = weight != 0 if masked else None
    found = bound(weight, a, b, magnitude, mask, by_column)
    want = slow(weight, a, b, magnitude, 1 if mask is None else mask, 0 if by_column else 1)
    result = found.result(0, OUT)
    assert np.abs(result - want).max() <= 1e-6 * np.abs(want).max()
    np.testing.assert_allclose(found.rows(0, OUT), want - weight, atol=1e-6 * np.abs(want).max())
    assert found.low_rank() is None
    if mask is not None:
        assert not result[~mask].any()
        norms = np.linalg.norm(result.astype(np.float64), axis=0 if by_column else 1)
        np.testing.assert_allclose(norms, np.abs(magnitude), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, OUT), max_size=4), st.booleans())
def test_blocks_change_no_bit(cuts: list[int], by_column: bool):
    weight, a, b, magnitude = parts(1, IN if by_column else OUT)
    whole = bound(weight, a, b, magnitude, weight != 0, by_column)
    edges = sorted({0, OUT, *cuts})
    again = bound(weight, a, b, magnitude, weight != 0, by_column)
    for produce, want in ((again.rows, whole.rows(0, OUT)), (again.result, whole.result(0, OUT))):
        blocks = [produce(r0, r1) for r0, r1 in zip(edges[:-1], edges[1:], strict=True)]
        np.testing.assert_array_equal(np.concatenate(blocks), want)


def test_a_row_that_was_pruned_away_stays_zero():
    """PEFT divides by a norm of zero there."""
    weight, a, b, magnitude = parts(2)
    weight[[0, 100]] = 0
    found = bound(weight, a, b, magnitude, weight != 0)
    assert not found.result(0, OUT)[[0, 100]].any()
    assert np.isfinite(found.rows(0, OUT)).all()
