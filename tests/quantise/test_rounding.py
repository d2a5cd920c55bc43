"""Codes and scales against exact fractions; groups, ties, zeros, extremes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import InputRefused, UsageError
from exporter.model import QuantKind
from exporter.quantise.rounding import Dequantised, Rounded, dequantise, nearest
from exporter.quantise.scales import scale_of, scales_of, spans
from tests.quantise import slow

KINDS: tuple[QuantKind, ...] = ("int8", "int4", "fp8")


def rounded(weight: Any, kind: QuantKind, group: int) -> Rounded:
    return Rounded(lambda r0, r1: weight[r0:r1].copy(), kind, group, "w")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "group"), [(7, 0), (64, 64), (72, 64), (200, 128), (576, 128)])
def test_against_exact_fractions(kind: QuantKind, width: int, group: int) -> None:
    rng = np.random.default_rng(width)
    weight = rng.standard_normal((3, width)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.6] = 0.0
    weight[1, -5:] = 0.0
    codes, scales = rounded(weight, kind, group)(0, 3)
    want = slow.quantise(weight, kind, group)
    np.testing.assert_array_equal(codes.astype(np.float64), want[0])
    np.testing.assert_array_equal(scales.astype(np.float64), want[1])
    values = dequantise(codes, scales, group)
    np.testing.assert_array_equal(values.astype(np.float64), want[2])
    assert scales.dtype == values.dtype == np.float32
    assert not np.signbit(values[weight == 0]).any() and not values[weight == 0].any()


FLOATS = st.floats(-(2.0**120), 2.0**120, width=32)


@pytest.mark.parametrize("kind", KINDS)
@given(weight=hnp.arrays(np.float32, (1, 5), elements=FLOATS))
def test_any_weights(kind: QuantKind, weight: Any) -> None:
    codes, scales = rounded(weight, kind, 0)(0, 1)
    want = slow.quantise(weight, kind, 0)
    np.testing.assert_array_equal(scales.astype(np.float64), want[1])
    np.testing.assert_array_equal(codes.astype(np.float64), want[0])
    assert not np.signbit(codes.astype(np.float32)[codes == 0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_even(kind: QuantKind) -> None:
    """Codes and halves between them under scale 1, and one float32 step to each side."""
    top = slow.LARGEST[kind]
    halves = np.arange(-top, top, 0.5, dtype=np.float32)
    near = (np.nextafter(halves, np.float32(s)) for s in (-np.inf, np.inf))
    weight = np.concatenate([halves, *near])[None]
    got = nearest(weight, np.ones(1, np.float32), kind)
    want = [float(slow.code(float(w), slow.Fraction(1), kind)) for w in weight[0]]
    np.testing.assert_array_equal(got[0].astype(np.float64), want)


def test_values_stay_in_their_range() -> None:
    assert nearest(
        np.array([[9, -9, 7.4]], np.float32), np.ones(1, np.float32), "int4"
    ).tolist() == [[7, -7, 7]]
    got = nearest(np.array([[1e9, -1e9]], np.float32), np.ones(1, np.float32), "fp8")
    assert got.astype(np.float32).tolist() == [[448.0, -448.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_is_the_smallest_that_holds_the_weights(kind: QuantKind) -> None:
    rng = np.random.default_rng(0)
    weight = np.exp2(rng.uniform(-140, 120, (200, 1))).astype(np.float32)
    scale = scale_of(weight, kind)
    assert (scale == scale.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
    below = (scale.view(np.uint32) - np.uint32(1 << 16)).view(np.float32)
    top, largest = weight[:, 0].astype(np.float64), slow.LARGEST[kind]
    assert (scale.astype(np.float64) * largest >= top).all()
    assert (below.astype(np.float64) * largest < top).all()


def test_blocks_of_rows_do_not_change_a_bit() -> None:
    weight = np.random.default_rng(1).standard_normal((37, 200)).astype(np.float32)
    for kind in KINDS:
        block = rounded(weight, kind, 128)
        rows = Dequantised(block, 128)
        parts = [rows(r, min(r + 5, 37)) for r in range(0, 37, 5)]
        np.testing.assert_array_equal(np.concatenate(parts), rows(0, 37))


def test_the_last_group_ends_with_the_row() -> None:
    assert list(spans(576, 128)) == [(0, 128), (128, 256), (256, 384), (384, 512), (512, 576)]
    assert list(spans(576, 0)) == [(0, 576)]
    assert scales_of(np.ones((2, 576), np.float32), "int4", 128).shape == (2, 5)


@pytest.mark.parametrize("group", [-64, 1, 32, 100])
def test_a_group_that_cuts_a_tile_is_refused(group: int) -> None:
    with pytest.raises(UsageError) as caught:
        list(spans(576, group))
    assert caught.value.code == "target-option" and str(group) in caught.value.found


def test_weights_near_the_end_of_float32_are_refused() -> None:
    weight = np.full((1, 4), 3.4e38, np.float32)
    with pytest.raises(InputRefused) as caught:
        rounded(weight, "int8", 0)(0, 1)
    assert caught.value.code == "value-overflow" and caught.value.tensor == "w"
