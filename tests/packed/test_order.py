"""The order in a tile: the formula, and what a CPU register and a GPU warp get from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.packed.order import TILE, from_tiles, padded, to_tiles
from backends.packed.spec import ValueType
from tests.packed.make import source

STEPS = {"fp32": 1, "bf16": 2, "fp16": 2, "int8": 4, "int4": 4, "fp8": 4}


@pytest.mark.parametrize(("values", "step"), STEPS.items())
def test_the_formula_holds_for_every_element(values, step) -> None:
    assert ValueType(values).step == step
    rows = np.arange(TILE, dtype=np.int32).reshape(16, 64)
    tile = to_tiles(rows, step) if step == 1 else to_tiles(rows.astype(np.int16), step)
    for r in range(16):
        for k in range(64):
            element = (k // step) * 16 * step + r * step + k % step
            assert tile[0, 0, element] == rows[r, k]


@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.sampled_from([(np.int32, 1), (np.int16, 2), (np.int8, 4), (np.bool_, 4), (np.bool_, 1)]),
)
def test_there_and_back(rows, columns, kind) -> None:
    dtype, step = kind
    before = np.random.default_rng(0).integers(0, 100, (rows, columns)).astype(dtype)
    tiles = to_tiles(padded(before, -(-columns // 64)), step)
    assert tiles.shape == (-(-rows // 16), -(-columns // 64), TILE)
    after = np.empty_like(before)
    from_tiles(tiles, step, after)
    assert np.array_equal(after, before)


@pytest.mark.parametrize("values", ["bf16", "int8", "fp32"])
def test_one_step_is_one_register_of_16_rows(values) -> None:
    """512 bits of values; expanded by the step's mask they are rows by g columns."""
    made = source("ragged", values, (16, 64), density=0.5)
    parts, step = made.pack(), ValueType(values).step
    lanes = 16 * step
    assert lanes * made.codes.itemsize == 64
    bits = np.unpackbits(parts["mask"][0, 0], bitorder="little").reshape(-1, lanes)
    at = 0
    for number, mask in enumerate(bits):
        register = np.zeros(lanes, made.codes.dtype)
        register[mask == 1] = parts["values"][at : at + mask.sum()]  # vpexpand
        at += mask.sum()
        want = made.stored()[:, number * step : (number + 1) * step]
        assert register.reshape(16, step).tobytes() == np.ascontiguousarray(want).tobytes()


def test_vdpbf16ps_takes_a_step_as_it_lies() -> None:
    """16 sums of pairs: lane r adds w[r, 2 s] x[2 s] + w[r, 2 s + 1] x[2 s + 1] (broadcast x)."""
    made = source("dense", "bf16", (16, 64))
    tile = to_tiles(made.codes, 2).reshape(32, 16, 2).astype(np.float64)
    x = np.random.default_rng(1).standard_normal(64)
    sums = np.zeros(16)
    for number in range(32):
        sums += tile[number] @ x[2 * number : 2 * number + 2]
    assert np.allclose(sums, made.codes.astype(np.float64) @ x, rtol=1e-12)


def test_one_word_of_the_mask_is_one_step_of_a_warp() -> None:
    """Lane i tests bit i and reads at the popcount of the bits below it: neighbours, coalesced."""
    made = source("ragged", "bf16", (16, 64))
    parts, at = made.pack(), 0
    for number, word in enumerate(parts["mask"][0, 0].view("<u4").tolist()):
        for lane in range(32):
            want = made.stored()[lane // 2, 2 * number + lane % 2]
            if word >> lane & 1:
                below = (word & ((1 << lane) - 1)).bit_count()
                assert parts["values"][at + below].tobytes() == want.tobytes()
            else:
                assert want == 0
        at += word.bit_count()
    assert at == made.spec.nnz


def test_rows_of_a_step_lie_side_by_side_in_memory_types() -> None:
    """One row's g values of a step make one 32-bit number, whatever their type."""
    for values in ValueType:
        assert values.codes.itemsize * values.step == 4
