"""Mask: packing, counting, containment and identity, against plain bool arrays."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.sparsity.mask import Mask

BOOLS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=41))


@settings(deadline=None)
@given(BOOLS, st.integers(0, 41), st.integers(0, 41), st.integers(1, 7))
def test_rows_give_back_what_was_packed(kept, r0, r1, step) -> None:
    mask = Mask.from_bool(kept)
    assert mask.bits.shape == (kept.shape[0], (kept.shape[1] + 7) // 8)
    assert np.array_equal(mask.rows(), kept)
    assert np.array_equal(mask.rows(r0, r1), kept[r0:r1])
    assert mask.kept == sum(map(int, kept.ravel()))
    blocks = list(mask.iter_rows(step))
    assert [r for r, _ in blocks] == list(range(0, kept.shape[0], step))
    assert np.array_equal(np.concatenate([b for _, b in blocks]), kept)


def test_first_column_is_the_highest_bit() -> None:
    kept = np.zeros((1, 10), bool)
    kept[0, [0, 9]] = True
    assert Mask.from_bool(kept).bits.tolist() == [[0b1000_0000, 0b0100_0000]]


@settings(deadline=None)
@given(st.data())
def test_contains_is_subset(data) -> None:
    a = data.draw(BOOLS)
    b = data.draw(hnp.arrays(np.bool_, a.shape))
    assert Mask.from_bool(a).contains(Mask.from_bool(b)) == bool((a | ~b).all())
    assert Mask.from_bool(a | b).contains(Mask.from_bool(b))


@settings(deadline=None)
@given(st.data())
def test_equality_and_digest_agree(data) -> None:
    a = data.draw(BOOLS)
    b = data.draw(st.one_of(st.just(a.copy()), hnp.arrays(np.bool_, a.shape)))
    x, y = Mask.from_bool(a), Mask.from_bool(b)
    assert (x == y) == np.array_equal(a, b) == (x.sha256() == y.sha256())


def test_digest_covers_the_shape() -> None:
    # Equal bytes, other shapes: padding must not make them one.
    masks = [Mask.from_bool(np.zeros(s, bool)) for s in ((2, 8), (1, 16), (2, 7), (1, 9))]
    assert len({m.sha256() for m in masks}) == len(masks)
    assert all(a != b for a in masks for b in masks if a is not b)


def test_digest_is_stable() -> None:
    kept = np.eye(3, 9, dtype=bool)
    want = b"mask 3 9\n" + bytes([128, 0, 64, 0, 32, 0])
    assert Mask.from_bool(kept).sha256() == hashlib.sha256(want).hexdigest()


@pytest.mark.parametrize(
    ("out", "width", "bits", "says"),
    [
        (2, 8, np.zeros((2, 2), np.uint8), "not uint8"),
        (2, 8, np.zeros((2, 1), np.int8), "int8"),
        (2, 9, np.array([[0, 0], [0, 0b0100_0000]], np.uint8), "padding"),
        (1, 15, np.array([[0, 1]], np.uint8), "padding"),
    ],
)
def test_bits_that_are_no_mask_are_refused(out, width, bits, says) -> None:
    with pytest.raises(ValueError, match=says):
        Mask(out, width, bits)


def test_masks_of_other_shapes_do_not_compare() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        Mask.from_bool(np.ones((2, 7), bool)).contains(Mask.from_bool(np.ones((2, 8), bool)))


def test_a_mask_does_not_equal_another_thing() -> None:
    assert Mask.from_bool(np.ones((1, 1), bool)) != "mask"
