"""Both readers give back what was packed: every kind, value type and shape, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.packed.check import check
from backends.packed.slow import SlowLinear, read
from backends.packed.spec import ValueType
from backends.packed.unpack import dense, kept, unpack
from tests.packed.make import NM, Source, source, sources


def slow(made: Source, parts: dict[str, np.ndarray]) -> SlowLinear:
    """The slow reader on the bytes that a file would hold."""
    return read(made.spec.to_json(), {part: a.tobytes() for part, a in parts.items()})


def assert_readers_agree(made: Source) -> None:
    parts = made.pack()
    check(made.spec, parts, "P", "f")
    weight, stored = made.weight(), made.stored()
    fast, slowly = dense(made.spec, parts), slow(made, parts)
    # As bytes, since -0.0 == 0.0; float32 holds the product of a code and a scale exactly.
    assert fast.astype(np.float64).tobytes() == weight.tobytes()
    assert np.array(slowly.weight).tobytes() == weight.tobytes()
    assert unpack(made.spec, parts).tobytes() == stored.tobytes()
    assert unpack(made.spec, parts).dtype == made.codes.dtype
    found = kept(made.spec, parts)
    if made.spec.kind == "nm":
        raw = stored.view(f"u{stored.dtype.itemsize}")
        assert np.array_equal(found, raw != 0)
        assert (np.array(slowly.marked) >= made.kept).all()
    else:
        assert np.array_equal(found, made.kept)
        assert np.array_equal(np.array(slowly.marked), made.kept)


@settings(max_examples=60)
@given(sources())
def test_any_linear_survives(made) -> None:
    assert_readers_agree(made)


@pytest.mark.parametrize("values", list(ValueType))
@pytest.mark.parametrize(("rows", "columns"), [(17, 65), (16, 64)])
def test_every_value_type_ragged_and_dense(values, rows, columns) -> None:
    for kind in ("ragged", "dense"):
        for group in (0, 64) if values.quantised else (0,):
            assert_readers_agree(source(kind, values, (rows, columns), group=group))


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(("n", "m"), NM)
def test_every_group_of_m(values, n, m) -> None:
    assert_readers_agree(source("nm", values, (18, 70), n=n, m=m))


@settings(max_examples=40)
@given(sources((60, 130)), st.data())
def test_any_rows_equal_the_whole(made, data) -> None:
    parts = made.pack()
    r0 = data.draw(st.integers(0, made.spec.shape[0] - 1))
    r1 = data.draw(st.integers(r0, made.spec.shape[0]))
    for reader in (unpack, dense, kept):
        whole = reader(made.spec, parts)
        assert reader(made.spec, parts, r0, r1).tobytes() == whole[r0:r1].tobytes()
        assert reader(made.spec, parts, r0).tobytes() == whole[r0:].tobytes()


def test_a_matrix_of_many_batches() -> None:
    made = source("ragged", "int4", (400, 1000), group=128)  # 18 row blocks make one batch
    assert dense(made.spec, made.pack()).tobytes() == made.weight().astype(np.float32).tobytes()


def test_every_byte_of_fp8_is_read_alike() -> None:
    codes = np.arange(256, dtype=np.uint8).view(ValueType.FP8.codes).reshape(4, 64)
    made = source("dense", "fp8", (4, 64))._replace(codes=codes, scales=np.ones((4, 1), np.float32))
    fast, slowly = dense(made.spec, made.pack()), slow(made, made.pack())
    assert np.array_equal(fast, np.array(slowly.weight), equal_nan=True)
    assert math.isnan(slowly.weight[1][63]) and math.isnan(slowly.weight[3][63])


def test_each_slot_is_read_once_and_int4_padding_never() -> None:
    made = source("ragged", "int4", (33, 130))
    parts = made.pack()
    read_slots = slow(made, parts).slots
    assert sorted(set(read_slots)) == sorted(read_slots)
    padding = set(range(2 * parts["values"].size)) - set(read_slots)
    assert 0 < len(padding) <= parts["offsets"].size
