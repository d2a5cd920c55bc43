"""Every fault of a packed linear is refused, with the tensor and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.packed.check import check
from backends.packed.spec import PackedLinear
from backends.packed.unpack import dense, kept
from exporter.errors import InputRefused
from tests.packed.make import BF16, Source, source, sources

Arrays = dict[str, np.ndarray]


def refused(spec: PackedLinear, parts: Arrays, part: str, word: str) -> None:
    with pytest.raises(InputRefused) as caught:
        check(spec, parts, "layers.3.P", "model-00001.safetensors")
    error = caught.value
    assert (error.code, error.tensor) == ("packed-invalid", f"layers.3.P.{part}")
    assert error.file == "model-00001.safetensors" and word in str(error), str(error)


@pytest.fixture
def ragged() -> Source:
    return source("ragged", "bf16", (37, 150))


@pytest.mark.parametrize(
    ("kind", "values", "part"),
    [
        ("ragged", "int8", "mask"),
        ("ragged", "int8", "values"),
        ("ragged", "int8", "offsets"),
        ("ragged", "int8", "starts"),
        ("ragged", "int8", "scales"),
        ("nm", "bf16", "mask"),
        ("nm", "int4", "values"),
        ("dense", "fp8", "values"),
    ],
)
def test_a_part_that_is_missing_short_long_or_of_another_type(kind, values, part) -> None:
    n, m = (2, 4) if kind == "nm" else (0, 0)
    made = source(kind, values, (33, 100), n=n, m=m)
    parts = made.pack()
    check(made.spec, parts, "P", None)
    array = parts[part]
    for other in (array[:-1], np.concatenate([array, array[:1]]), array[None]):
        refused(made.spec, {**parts, part: other}, part, "")
    wide = array.view(np.uint8).astype(np.int16)
    refused(made.spec, {**parts, part: wide}, part, "int16")
    refused(made.spec, {p: a for p, a in parts.items() if p != part}, part, "missing")


def test_a_part_that_does_not_belong(ragged) -> None:
    parts = ragged.pack()
    scales = np.ones((37, 1), BF16)
    refused(ragged.spec, {**parts, "scales": scales}, "scales", "no such tensor")
    refused(ragged.spec, {**parts, "weight": scales}, "weight", "no such tensor")


def test_bits_that_do_not_make_up_nnz(ragged) -> None:
    parts = ragged.pack()
    parts["mask"][0, 0, 0] ^= 1
    refused(ragged.spec, parts, "mask", f"nnz = {ragged.spec.nnz}")


def test_nnz_that_is_not_that_of_the_bits(ragged) -> None:
    parts = ragged.pack()
    off = replace(ragged.spec, nnz=ragged.spec.nnz - 1)
    refused(off, {**parts, "values": parts["values"][1:]}, "mask", f"{ragged.spec.nnz} bits")


def test_a_bit_that_moved_to_another_tile(ragged) -> None:
    """nnz still holds; the offsets tell."""
    parts = ragged.pack()
    first, second = (int(np.flatnonzero(parts["mask"][0, c])[0]) for c in (0, 1))
    for column, byte, want in ((0, first, 1), (1, second, 0)):
        bits = np.unpackbits(parts["mask"][0, column, byte : byte + 1])
        bits[int(np.flatnonzero(bits == want)[0])] ^= 1
        parts["mask"][0, column, byte] = np.packbits(bits)[0]
    refused(ragged.spec, parts, "offsets", "as the mask has bits")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: o.__setitem__((1, 1), 1 << 30),  # out of range
        lambda o: o.__setitem__((1, 1), -1),
        lambda o: o.__setitem__((1, slice(1, 3)), o[1, :0:-1].copy()),  # not rising
        lambda o: o.__setitem__((2, 0), 1),  # a row block's first tile starts at 0
        lambda o: o.__iadd__(1),
    ],
)
def test_offsets_that_do_not_follow_from_the_mask(ragged, spoil: Callable[[np.ndarray], None]):
    parts = ragged.pack()
    spoil(parts["offsets"])
    refused(ragged.spec, parts, "offsets", "as the mask has bits")


@pytest.mark.parametrize("change", [1, -1, 1 << 62, -(1 << 62)])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_starts_that_do_not_follow_from_the_mask(ragged, at, change) -> None:
    parts = ragged.pack()
    parts["starts"][at] += change
    refused(ragged.spec, parts, "starts", f"at [{at}]")


def test_values_that_are_cut_short_together_with_nnz(ragged) -> None:
    parts = ragged.pack()
    refused(ragged.spec, {**parts, "values": parts["values"][:-1]}, "values", "BF16")
    int4 = source("ragged", "int4", (37, 150))
    parts = int4.pack()
    refused(int4.spec, {**parts, "values": parts["values"][:-1]}, "values", "as the mask has bits")


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(("row", "column"), [(37, 0), (47, 63), (0, 150), (36, 191), (47, 191)])
def test_a_bit_outside_the_matrix(values, row, column) -> None:
    """The bit is paid for: a kept one of the same tile is taken away."""
    made = source("ragged", values, (37, 150))
    parts, step = made.pack(), made.spec.values.step
    tile = parts["mask"][row // 16, column // 64]
    bits = np.unpackbits(tile, bitorder="little")
    r, k = row % 16, column % 64
    bits[int(np.flatnonzero(bits)[0])] = 0
    bits[(k // step) * 16 * step + r * step + k % step] = 1
    tile[:] = np.packbits(bits, bitorder="little")
    refused(made.spec, parts, "mask", "outside [out, in]")


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (3, 16)])
def test_a_group_with_another_count(values, n, m) -> None:
    made = source("nm", values, (40, 200), n=n, m=m)
    step = made.spec.values.step
    for row, column in ((0, 0), (17, 70), (39, 199), (47, 255)):
        parts = made.pack()
        r, k = row % 16, column % 64
        element = (k // step) * 16 * step + r * step + k % step
        parts["mask"][row // 16, column // 64, element // 8] ^= 1 << element % 8
        where = f"row {row}, columns from {column - column % m}"
        refused(made.spec, parts, "mask", where)


def test_a_bit_that_moved_to_the_next_group() -> None:
    made = source("nm", "bf16", (16, 64), n=2, m=4)
    parts = made.pack()
    bits = np.unpackbits(parts["mask"][0, 0], bitorder="little").reshape(32, 16, 2)
    bits[0:2, 0] = 0  # row 0, columns 0..3
    bits[2:4, 0] = 1  # columns 4..7
    parts["mask"][0, 0] = np.packbits(bits, bitorder="little")
    refused(made.spec, parts, "mask", "0 bits of 4 at row 0, columns from 0")


@pytest.mark.parametrize("values", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize(("row", "column"), [(31, 0), (0, 61), (16, 61), (31, 61)])
def test_a_value_outside_the_matrix(values, row, column) -> None:
    """The second of 2 bits of columns 60..63, and all those of row 31, are fillers in padding."""
    made = source("nm", values, (31, 61), n=2, m=4)
    parts, step = made.pack(), made.spec.values.step
    bits = np.unpackbits(parts["mask"][row // 16, 0], bitorder="little")
    element = (column // step) * 16 * step + row % 16 * step + column % step
    assert bits[element] == 1
    parts["values"][row // 16, 0, int(bits[:element].sum())] = -0.0 if values == "fp32" else 1
    refused(made.spec, parts, "values", "outside [out, in]")


def test_a_code_outside_the_matrix() -> None:
    made = source("nm", "int4", (16, 61), n=2, m=4)
    parts = made.pack()
    parts["values"][0, 0, -1] |= 0x10  # row 15, column 61
    refused(made.spec, parts, "values", "outside [out, in]")


def test_more_values_than_nnz_tells() -> None:
    made = source("nm", "bf16", (16, 64), n=2, m=4)
    stored = int(np.count_nonzero(made.pack()["values"].view(np.uint16)))
    check(replace(made.spec, nnz=stored), made.pack(), "P", None)
    refused(replace(made.spec, nnz=stored - 1), made.pack(), "values", "are not 0")


@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ("fp32", np.nan),
        ("fp32", -np.inf),
        ("bf16", np.inf),
        ("bf16", np.nan),
        ("fp16", np.nan),
        ("fp8", np.nan),
        ("int8", -128),
    ],
)
def test_values_that_no_writer_makes(kind, values, bad) -> None:
    n, m = (2, 4) if kind == "nm" else (0, 0)
    made = source(kind, values, (32, 128), n=n, m=m)
    parts = made.pack()
    parts["values"].reshape(-1)[-1] = bad
    refused(made.spec, parts, "values", "finite values")


@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
@pytest.mark.parametrize("byte", [0x08, 0x80])
def test_the_code_minus_8(kind, byte) -> None:
    n, m = (2, 4) if kind == "nm" else (0, 0)
    made = source(kind, "int4", (32, 128), n=n, m=m)
    parts = made.pack()
    parts["values"].reshape(-1)[5] = byte
    refused(made.spec, parts, "values", "-8")


def test_a_padding_nibble_that_is_not_0() -> None:
    dense_made = source("dense", "int4", (3, 5))
    parts = dense_made.pack()
    parts["values"][1, 2] |= 0x10
    refused(dense_made.spec, parts, "values", "nibble")
    made = source("ragged", "int4", (16, 64))
    made.kept[:] = False
    made.kept[3, :3] = True
    made = made._replace(spec=replace(made.spec, nnz=3))
    parts = made.pack()
    assert parts["starts"].tolist() == [0, 4]
    parts["values"][1] |= 0x10
    refused(made.spec, parts, "values", "padding code")


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, 0.0, -0.0, -1.0, 2.0**122])
@pytest.mark.parametrize("group", [0, 64])
def test_scales_that_are_no_scales(bad, group) -> None:
    made = source("ragged", "int8", (37, 150), group=group)
    parts = made.pack()
    parts["scales"][20, -1] = bad
    refused(made.spec, parts, "scales", f"at [20, {parts['scales'].shape[1] - 1}]")


@pytest.mark.parametrize(("values", "largest"), [("int8", 127), ("int4", 7), ("fp8", 448)])
def test_the_largest_and_the_least_scale(values, largest) -> None:
    """The largest scale whose weights are finite is taken, the next number of bfloat16 is not."""
    made = source("dense", values, (1, 8))
    made.codes[:] = largest
    every = np.arange(1, 0x7F80, dtype=np.uint16).view(BF16)
    finite = every.astype(np.float64) * largest <= np.finfo(np.float32).max
    for scale, fits in ((every[0], True), (every[finite][-1], True), (every[~finite][0], False)):
        spoilt = made._replace(scales=np.array([[scale]]))
        parts = spoilt.pack()
        if fits:
            check(made.spec, parts, "P", None)
            assert dense(made.spec, parts).tobytes() == spoilt.weight().astype("f4").tobytes()
        else:
            refused(made.spec, parts, "scales", "finite weights")


@settings(max_examples=100)
@given(sources((33, 130)), st.data())
def test_a_flipped_bit_is_refused_or_changes_nothing_but_a_value(made, data) -> None:
    """Whatever one bit does, a reader either never sees the parts or stays within them."""
    parts = made.pack()
    part = data.draw(st.sampled_from([p for p, a in parts.items() if a.size]))
    raw = parts[part].reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        check(made.spec, parts, "P", None)
    except InputRefused as error:
        assert error.code == "packed-invalid"
        return
    assert part in ("values", "scales")
    assert np.isfinite(dense(made.spec, parts)).all()
    if made.spec.kind == "ragged":
        assert np.array_equal(kept(made.spec, parts), made.kept)
