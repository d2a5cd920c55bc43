"""The bitmask codec against a slow one, and everything that a decoder must refuse."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.vllm.legacy.decode import decode_bitmask, decode_bitmask_torch
from backends.vllm.legacy.encode import encode_two_four
from exporter.errors import InputRefused
from tests.legacy.slow import slow_read, slow_write

TYPES = ("float32", "float16", ml_dtypes.bfloat16, "int8", ml_dtypes.float8_e4m3fn)
TORCH = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn)


def two_four(rows: int, columns: int, seed: int) -> Any:
    """Small whole numbers, exact in every type; at most two of each four are not zero."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(-9, 10, (rows, columns // 4, 4))
    order = rng.permuted(np.broadcast_to(np.arange(4), groups.shape), axis=2)
    groups[order >= rng.integers(0, 3, groups.shape[:2])[..., None]] = 0
    return groups.reshape(rows, columns).astype(np.float64)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32), st.sampled_from(TYPES))
def test_two_four(rows: int, width: int, seed: int, dtype: Any) -> None:
    dense = two_four(rows, 8 * width, seed)
    compressed, bitmask = encode_two_four(dense.astype(dtype), tensor="t")
    values, masks, _ = slow_write(dense, stand_in=True)
    assert compressed.dtype == np.dtype(dtype) and compressed.shape == (rows, 4 * width)
    assert compressed.astype(np.float64).reshape(-1).tolist() == values
    assert bitmask.tolist() == masks
    shape = np.array([[rows], [8 * width]])
    back = decode_bitmask(compressed, bitmask, shape)
    assert back.dtype == np.dtype(dtype)
    assert back.astype(np.float64).tolist() == dense.tolist()
    assert slow_read(compressed, bitmask, 8 * width) == dense.tolist()


@given(st.integers(1, 5), st.integers(1, 21), st.integers(0, 2**32), st.sampled_from(TYPES))
def test_unstructured(rows: int, columns: int, seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.integers(-9, 10, (rows, columns)) * (rng.random((rows, columns)) < 0.4)
    values, masks, offsets = slow_write(dense, stand_in=False)
    parts = (
        np.array(values).astype(dtype),
        np.array(masks, np.uint8),
        np.array([rows, columns]),
        np.array(offsets),
    )
    assert decode_bitmask(*parts).astype(np.float64).tolist() == dense.tolist()


@pytest.mark.parametrize(("dtype", "named"), [*zip(TORCH, TYPES, strict=True)])
def test_torch_form_gives_the_same_bits(dtype: torch.dtype, named: Any) -> None:
    dense = two_four(6, 32, 3)
    compressed, bitmask = encode_two_four(dense.astype(named), tensor="t")
    given_values = torch.tensor(compressed.astype(np.float32)).to(dtype)
    shape = torch.tensor([[6], [32]])
    got = decode_bitmask_torch(given_values, torch.tensor(bitmask), shape)
    assert got.dtype == dtype and got.float().tolist() == dense.tolist()
    values, masks, offsets = slow_write(dense, stand_in=False)
    got = decode_bitmask_torch(
        torch.tensor(values).to(dtype),
        torch.tensor(masks, dtype=torch.uint8),
        torch.tensor([6, 32]),
        torch.tensor(offsets),
    )
    assert got.dtype == dtype and got.float().tolist() == dense.tolist()


def test_blocks_of_rows_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.vllm.legacy.decode._BLOCK_ELEMENTS", 50)
    dense = two_four(7, 16, 1)
    parts = encode_two_four(dense.astype(np.float32), tensor="t")
    assert np.array_equal(decode_bitmask(*parts, np.array([7, 16])), dense)
    broken = parts[1].copy()
    broken[6, 1] = 0b0111_0011
    with pytest.raises(InputRefused, match="row 16, group 3: 3 of 4"):
        decode_bitmask(parts[0], broken, np.array([7, 16]), row=10)


def test_other_stand_ins_are_read_too() -> None:
    """Another torch may choose other zeros to keep; the file is as good."""
    values = np.array([[0, 5]], np.float32)
    assert decode_bitmask(values, np.array([[0b1001]], np.uint8), np.array([1, 4])).tolist() == [
        [0, 0, 0, 5]
    ]


def test_no_negative_zero_is_written() -> None:
    values = np.array([[-0.0, 0, -0.0, -3, 0, 0, 0, 0]], np.float32)
    compressed, _ = encode_two_four(values, tensor="t")
    assert compressed.tolist() == [[0, -3, 0, 0]] and not np.signbit(compressed[0, 0])


def test_three_of_four_are_refused() -> None:
    values = np.zeros((3, 16), np.float32)
    values[1, 4:7] = 1
    values[2, :4] = 1
    with pytest.raises(InputRefused) as caught:
        encode_two_four(values, tensor="P.weight", row=10)
    assert (caught.value.code, caught.value.tensor) == ("pattern-mismatch", "P.weight")
    assert caught.value.found.startswith("2 groups from row 11 on")


def i64(*values: Any) -> Any:
    return np.array(values, np.int64)


TWO_FOUR = {
    "compressed": np.ones((2, 4), np.float32),
    "bitmask": np.full((2, 1), 0b0110_0011, np.uint8),
    "shape": i64([2], [8]),
}
UNSTRUCTURED = {
    "compressed": np.ones(4, np.float32),
    "bitmask": np.array([[0b101], [0b11]], np.uint8),
    "shape": i64(2, 3),
    "row_offsets": i64(0, 2),
}


@pytest.mark.parametrize(
    ("base", "part", "value", "told"),
    [
        (TWO_FOUR, "shape", i64(2, 8, 1), "shape"),
        (TWO_FOUR, "shape", np.array([2.0, 8.0]), "shape"),
        (TWO_FOUR, "shape", i64(-2, 8), "shape"),
        (TWO_FOUR, "shape", i64(2, 1 << 40), "shape"),
        (TWO_FOUR, "shape", i64(0, 8), "shape"),
        (TWO_FOUR, "shape", i64(2, 6), "shape"),  # not of fours
        (TWO_FOUR, "shape", i64(8, 2), "bitmask"),
        (TWO_FOUR, "bitmask", np.zeros((2, 2), np.uint8), "bitmask"),
        (TWO_FOUR, "bitmask", np.full((2, 1), 99, np.int8), "bitmask"),
        (TWO_FOUR, "bitmask", np.full((2, 1), 0b0111_0011, np.uint8), "bitmask"),
        (TWO_FOUR, "bitmask", np.full((2, 1), 0b0100_0111, np.uint8), "bitmask"),  # 3 and 1
        (TWO_FOUR, "compressed", np.ones((2, 3), np.float32), "compressed"),
        (TWO_FOUR, "compressed", np.ones(8, np.float32), "compressed"),
        (UNSTRUCTURED, "compressed", np.ones(3, np.float32), "compressed"),
        (UNSTRUCTURED, "compressed", np.ones((2, 2), np.float32), "compressed"),
        (UNSTRUCTURED, "bitmask", np.array([[0b101], [0b111]], np.uint8), "compressed"),
        (UNSTRUCTURED, "bitmask", np.array([[0b1101], [0b1]], np.uint8), "bitmask"),  # padding
        (UNSTRUCTURED, "row_offsets", i64(0, 1), "row_offsets"),
        (UNSTRUCTURED, "row_offsets", i64(0, 2, 4), "row_offsets"),
        (UNSTRUCTURED, "row_offsets", i64(-2, 2), "row_offsets"),
        (UNSTRUCTURED, "row_offsets", np.array([0, 2], np.int32), "row_offsets"),
        (UNSTRUCTURED, "shape", i64(2, 2), "bitmask"),
    ],
)
def test_refused(base: Any, part: str, value: Any, told: str) -> None:
    decode_bitmask(**base)  # the base is sound
    with pytest.raises(InputRefused) as caught:
        decode_bitmask(**{**base, part: value}, module="P", file="f.safetensors")
    error = caught.value
    assert (error.code, error.tensor, error.file) == (
        "bitmask-invalid",
        f"P.{told}",
        "f.safetensors",
    )
    assert error.expected
    named = {name: torch.from_numpy(array) for name, array in {**base, part: value}.items()}
    with pytest.raises(InputRefused):
        decode_bitmask_torch(**named)
