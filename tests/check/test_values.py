"""Values: every line of the fault list, in every stored type, against a float64 reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.check.model import check_model
from exporter.check.values import Scanner, ValueCounts
from exporter.errors import InputRefused
from exporter.model import Note
from tests.check.folder import EMBEDDING, NORM, Q0, Q0W, tensors, write_model

TYPES = [np.dtype(t) for t in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)]
UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def slow_counts(block: np.ndarray) -> ValueCounts:
    """The same figures from float64 values, one by one."""
    least = float(ml_dtypes.finfo(block.dtype).smallest_normal)
    values = [float(v) for v in block.ravel()]
    return ValueCounts(
        values=len(values),
        nonzero=sum(v != 0 for v in values),
        negative_zeros=sum(v == 0 and np.signbit(v) for v in map(np.float64, values)),
        denormals=sum(v != 0 and abs(v) < least for v in values),
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@settings(deadline=None)
@given(data=st.data())
def test_scan_equals_float64_on_any_bits(dtype, data) -> None:
    unsigned = UNSIGNED[dtype.itemsize]
    special = [0, 1, 1 << (8 * dtype.itemsize - 1), (1 << (8 * dtype.itemsize - 1)) + 1]
    raw = data.draw(
        hnp.arrays(
            unsigned,
            hnp.array_shapes(min_dims=1, max_dims=2, max_side=9),
            elements=st.one_of(
                st.sampled_from(special), st.integers(0, int(np.iinfo(unsigned).max))
            ),
        )
    )
    block = raw.view(dtype)
    wide = block.astype(np.float64)
    scanner = Scanner("t", dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.isfinite(wide.astype(np.float32))
    if fits.all():
        nonzero = scanner.scan(block)
        assert np.array_equal(nonzero, wide != 0)
        assert scanner.counts == slow_counts(block)
        return
    with pytest.raises(InputRefused) as caught:
        scanner.scan(block)
    first = [int(i) for i in np.argwhere(~fits)[0]]
    finite = np.isfinite(wide[tuple(first)])
    assert caught.value.code == ("value-overflow" if finite else "value-not-finite")
    assert f"at {first}" in caught.value.found


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_edges_of_every_type(dtype) -> None:
    info = ml_dtypes.finfo(dtype)
    top = info.max if dtype.itemsize < 8 else np.finfo(np.float32).max
    edge = np.array([top, -top, info.smallest_normal, info.smallest_subnormal, -0.0])
    scanner = Scanner("t", dtype)
    nonzero = scanner.scan(edge.astype(dtype))
    assert nonzero.tolist() == [True, True, True, True, False]
    assert scanner.counts == ValueCounts(values=5, nonzero=4, negative_zeros=1, denormals=1)


def test_blocks_add_up() -> None:
    block = np.array([[0.0, -0.0, 1e-45, 2.0], [0.0, 1.0, -1e-45, -0.0]], np.float32)
    scanner = Scanner("t", block.dtype)
    assert scanner.scan(block[:1]).tolist() == [[False, False, True, True]]
    assert scanner.scan(np.concatenate([block, block])).sum() == 8
    assert scanner.scan(block[:0]).shape == (0, 4)
    assert scanner.counts == slow_counts(np.concatenate([block[:1], block, block]))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "index"), [(Q0W, (11, 5)), (EMBEDDING, (19, 15)), (NORM, (7,))])
def test_a_value_that_is_not_finite_is_named(tmp_path, dtype, bad, name, index) -> None:
    arrays = tensors(dtype=dtype)
    arrays[name][index] = bad
    with pytest.raises(InputRefused) as caught:
        check_model(write_model(tmp_path, arrays))
    error = caught.value
    assert (error.code, error.tensor) == ("value-not-finite", name)
    assert error.file == "model.safetensors"
    assert error.found == f"{float(bad)} at {list(index)}"


def test_float64_up_to_what_rounds_to_infinity_in_float32(tmp_path) -> None:
    half_way = 2.0**128 - 2.0**103  # between the largest float32 and 2^128; even is upwards
    arrays = tensors(dtype=np.float64)
    arrays[Q0W][3, 4] = -np.nextafter(half_way, 0)
    check_model(write_model(tmp_path / "below", arrays))
    arrays[Q0W][3, 4] = -half_way
    with pytest.raises(InputRefused) as caught:
        check_model(write_model(tmp_path / "at", arrays))
    error = caught.value
    assert (error.code, error.file, error.tensor) == ("value-overflow", "model.safetensors", Q0W)
    assert "[3, 4]" in error.found


def test_the_index_holds_beyond_the_first_block() -> None:
    block = np.zeros((4, 3), np.float32)
    block[2, 1] = block[3, 0] = np.inf
    with pytest.raises(InputRefused, match=r"inf at \[1002, 1\] and 1 more"):
        Scanner("t", block.dtype).scan(block, 1000)


def note_of(tmp_path, arrays) -> tuple[Note, ...]:
    return check_model(write_model(tmp_path, arrays)).notes


def test_negative_zeros_are_zeros_and_counted(tmp_path) -> None:
    arrays = tensors(dtype=ml_dtypes.bfloat16)
    arrays[Q0W][:, ::2] = -0.0
    checked = check_model(write_model(tmp_path, arrays))
    assert checked.notes == (Note(Q0W, "negative-zeros", 128),)
    assert checked.patterns[Q0].kept == 128
    mask = checked.masks.mask(next(x for x in checked.spec.linears() if x.module == Q0))
    assert np.array_equal(mask.rows(), np.arange(256).reshape(16, 16) % 2 == 1)


def test_denormals_are_kept_and_counted(tmp_path) -> None:
    arrays = tensors(dtype=ml_dtypes.bfloat16)
    arrays[Q0W][3] = ml_dtypes.finfo(ml_dtypes.bfloat16).smallest_subnormal
    checked = check_model(write_model(tmp_path, arrays))
    assert checked.notes == (Note(Q0W, "denormals", 16),)
    assert checked.patterns[Q0].kept == 256


def test_an_all_zero_linear_is_noted(tmp_path) -> None:
    notes = note_of(tmp_path, tensors() | {Q0W: np.zeros((16, 16), np.float32)})
    assert notes == (Note(Q0W, "all-zero", 256),)


def test_an_all_zero_norm_is_noted(tmp_path) -> None:
    notes = note_of(tmp_path, tensors() | {NORM: np.zeros(16, np.float32)})
    assert notes == (Note(NORM, "all-zero", 16),)


def test_zero_rows_are_noted(tmp_path) -> None:
    arrays = tensors()
    arrays[Q0W][[2, 9]] = 0
    assert note_of(tmp_path, arrays) == (Note(Q0W, "zero-rows", 2),)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_greatest_finite_values_pass(tmp_path, dtype) -> None:
    arrays = tensors(dtype=dtype)
    top = ml_dtypes.finfo(dtype if dtype.itemsize < 8 else np.float32).max
    arrays[Q0W][0], arrays[Q0W][1] = top, -top
    assert note_of(tmp_path, arrays) == ()


@pytest.mark.parametrize("shape", [(1, 200_003), (200_003, 1)])
def test_huge_aspect_is_counted_right(tmp_path, shape) -> None:
    from exporter.check.model import read_linear

    rng = np.random.default_rng(1)
    weight = rng.random(shape).astype(np.float32)
    weight[weight < 0.3] = 0
    checkpoint = write_model(tmp_path, {"x.weight": weight})
    pattern, _ = read_linear(checkpoint, "x", shape, None, "zeros")
    assert pattern.kept == int((weight != 0).sum())
