"""Packing: what a writer owes, and streaming row block by row block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from backends.packed import order
from backends.packed import pack as packing
from backends.packed.pack import index, mask_chunks, pack, pack_block, pack_scales, value_chunks
from backends.packed.spec import PackedLinear, ValueType
from backends.packed.unpack import dense, unpack
from backends.packed.values import join_nibbles, split_nibbles
from exporter.sparsity.mask import Mask
from tests.packed.make import source, sources


def test_fillers_take_the_lowest_free_places_of_their_group_and_hold_0() -> None:
    kept = np.zeros((16, 64), np.bool_)
    kept[0, [1, 6, 7]] = True  # groups 0 and 1; the others are empty
    values = np.full((16, 64), 3, np.float32)
    spec = PackedLinear("nm", ValueType.FP32, (16, 64), 3, 2, 4)
    parts = pack(spec, values, kept)
    bits = np.unpackbits(parts["mask"][0, 0], bitorder="little").reshape(64, 16).T
    assert np.flatnonzero(bits[0])[:6].tolist() == [0, 1, 6, 7, 8, 9]
    assert np.flatnonzero(bits[1])[:4].tolist() == [0, 1, 4, 5]
    assert int(np.count_nonzero(parts["values"])) == 3
    assert unpack(spec, parts).sum() == 9


def test_padding_of_nm_is_filled_like_the_rest() -> None:
    made = source("nm", "bf16", (3, 5), n=1, m=4)
    bits = np.unpackbits(made.pack()["mask"][0, 0], bitorder="little").reshape(32, 16, 2)
    rows = bits.transpose(1, 0, 2).reshape(16, 16, 4)
    assert (rows.sum(axis=2) == 1).all()
    assert (rows[3:, :, 0] == 1).all() and (rows[:, 2:, 0] == 1).all()


def test_int4_tiles_begin_at_a_byte() -> None:
    made = source("ragged", "int4", (48, 300))
    parts = made.pack()
    assert not (parts["offsets"] % 2).any() and not (parts["starts"] % 2).any()
    assert made.spec.nnz < int(parts["starts"][-1]) == 2 * parts["values"].size
    assert not (source("ragged", "int8", (48, 300)).pack()["starts"] % 2 == 0).all()


def test_codes_of_a_nibble() -> None:
    codes = np.array([[1, -1, -7, 7, 0, -3]], np.int8)
    assert join_nibbles(codes).tolist() == [[0xF1, 0x79, 0xD0]]
    assert np.array_equal(split_nibbles(join_nibbles(codes)), codes)
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(join_nibbles(split_nibbles(every)), every)


def test_what_is_not_kept_is_not_looked_at() -> None:
    for kind, n, m in (("ragged", 0, 0), ("nm", 2, 4)):
        made = source(kind, "fp32", (20, 70), n=n, m=m)
        spoilt = made._replace(codes=np.where(made.kept, made.codes, np.float32(np.nan)))
        for part, array in made.pack().items():
            assert spoilt.pack()[part].tobytes() == array.tobytes()


@settings(max_examples=60)
@given(sources())
def test_the_index_follows_from_the_mask_alone(made) -> None:
    spec = replace(made.spec, kind="ragged", n=0, m=0, nnz=int(made.kept.sum()))
    found = index(spec, Mask.from_bool(made.kept))
    parts = made._replace(spec=spec).pack()
    assert found.nnz == made.kept.sum()
    for block in range(spec.row_blocks):
        at = int(parts["starts"][block])
        for tile in range(spec.column_tiles):
            assert parts["offsets"][block, tile] == at - parts["starts"][block]
            inside = made.kept[block * 16 : block * 16 + 16, tile * 64 : tile * 64 + 64]
            count = int(inside.sum())
            at += count + count % 2 if spec.values is ValueType.INT4 else count
        assert parts["starts"][block + 1] == at
    assert np.array_equal(found.offsets, parts["offsets"])
    assert np.array_equal(found.starts, parts["starts"])


@settings(max_examples=30)
@given(sources())
def test_streamed_blocks_are_the_whole(made) -> None:
    """Batches of one row block, rows asked for as the writer asks: the same bytes."""
    parts, asked = made.pack(), []
    smaller = pytest.MonkeyPatch()
    with smaller.context() as patch:
        patch.setattr(order, "BATCH", 1)

        def rows(r0: int, r1: int) -> np.ndarray:
            asked.append((r0, r1))
            return made.codes[r0:r1]

        chunks = list(value_chunks(made.spec, rows, lambda r0, r1: made.kept[r0:r1]))
        masks = list(mask_chunks(made.spec, lambda r0, r1: made.kept[r0:r1]))
    assert len(chunks) == len(masks) == made.spec.row_blocks
    assert all(r1 - r0 <= 16 for r0, r1 in asked)
    assert b"".join(c.tobytes() for c in chunks) == parts["values"].tobytes()
    if made.spec.kind != "dense":
        assert np.concatenate(masks).tobytes() == parts["mask"].tobytes()


def test_one_block_is_packed_alone() -> None:
    made = source("ragged", "bf16", (40, 100))
    parts = made.pack()
    block = pack_block(made.spec, made.codes[16:32], made.kept[16:32])
    assert np.array_equal(block.mask, parts["mask"][1:2])
    first, last = parts["starts"][1:3]
    assert block.values.tobytes() == parts["values"][first:last].tobytes()


def test_mistakes_of_the_calling_program() -> None:
    made = source("nm", "bf16", (16, 64), n=2, m=4)
    with pytest.raises(ValueError, match="more than 2 of 4"):
        pack(made.spec, made.codes, np.ones((16, 64), np.bool_))
    with pytest.raises(ValueError, match="kept positions"):
        pack(made.spec, made.codes)
    with pytest.raises(ValueError, match="kept positions"):
        pack_block(made.spec, made.codes, made.kept[:3])
    with pytest.raises(ValueError, match="float32"):
        pack(made.spec, made.codes.astype(np.float32), made.kept)
    ragged = source("ragged", "bf16", (16, 64))
    with pytest.raises(ValueError, match="nnz"):
        pack(replace(ragged.spec, nnz=3), ragged.codes, ragged.kept)


def test_scales_are_numbers_of_bfloat16() -> None:
    made = source("ragged", "int8", (16, 64))
    assert made.scales is not None
    wide = made.scales.astype(np.float32)
    assert pack_scales(made.spec, wide).tobytes() == made.scales.tobytes()
    for wrong in (wide + np.float32(1e-6), None, wide[:, 0], np.ones((16, 2), np.float32)):
        with pytest.raises(ValueError, match="scales"):
            pack_scales(made.spec, wrong)


def test_a_row_of_zeros_with_scale_1_stays_zero() -> None:
    made = source("ragged", "int8", (2, 64))
    assert made.scales is not None
    made.codes[1], made.scales[1] = 0, 1
    assert not dense(made.spec, made.pack())[1].any()


def test_the_modules_memory_is_a_batch() -> None:
    assert packing.blocks_at_once(64) * 16 * 64 == order.BATCH
    assert packing.blocks_at_once(1 << 24) == 1
