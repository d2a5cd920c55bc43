"""One row of x by slots on AVX2: which linears have them, how many bytes, the same products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends.packed.kernels.library import Isa, Library
from backends.packed.kernels.linear import CpuLinear
from backends.packed.values import ValueType
from tests.kernels.test_products import activations, off, rounded
from tests.packed.make import BF16, Source, source

SLOTTED = [v for v in ValueType if v is not ValueType.FP8]
VALUE_BITS = {"bf16": 16, "fp16": 16, "fp32": 32, "int8": 8, "int4": 4}


@pytest.fixture
def avx2(kernels: Library) -> Library:
    if Isa.AVX2 not in kernels.isas():
        pytest.skip("no AVX2 here: other machines have no slots")
    return kernels


def built(made: Source, lib: Library, precision: str = "int16") -> CpuLinear:
    return CpuLinear.build(made.spec, made.pack(), Isa.AVX2, precision=precision, lib=lib)  # type: ignore[arg-type]


def stored(made: Source) -> np.ndarray:
    """What the file keeps, fillers of N:M too, whole blocks: `[rows to 16, columns to 64]`."""
    step = min(4, 32 // VALUE_BITS[made.spec.values.value])
    bits = np.unpackbits(np.asarray(made.pack()["mask"]), axis=-1, bitorder="little")
    blocks, tiles = bits.shape[:2]
    parts = bits.reshape(blocks, tiles, 64 // step, 16, step).transpose(0, 3, 1, 2, 4)
    return parts.reshape(blocks * 16, tiles * 64).astype(bool)


def slots(kept: np.ndarray) -> int:
    """Slots of 8 rows of one section, by the definition in slots.h: `kept` is `[8, columns]`."""
    left = [list(np.flatnonzero(row)) for row in kept]
    count = window = 0
    while any(left):
        first = min(*(row[0] for row in left if row), kept.shape[1] - 16)
        while first - window > 255:
            count, window = count + 1, window + 255
        for row in left:
            taken = [column for column in row[:2] if column < first + 16]
            del row[: len(taken)]
        count, window = count + 1, first
    return count


def row_bytes(kept: np.ndarray, values: ValueType, section: int = 512) -> int:
    """Bytes that one row of x reads: `kept` as `stored` gives it."""
    two = 32 * VALUE_BITS[values.value] // 8 + 16 + 2
    stream = 0
    for half in kept.reshape(-1, 8, kept.shape[1]):
        parts = [half[:, k : k + section] for k in range(0, kept.shape[1], section)]
        stream += sum(2 + (slots(part) + 1) // 2 * two for part in parts)
    return -(-(stream + 64) // 64) * 64 + 8 * (kept.shape[0] // 8)


def codes_of(x: np.ndarray) -> np.ndarray:
    """x by the kernels' own rule for 16-bit codes, in their float32: codes times scale, float64."""
    top = np.abs(x).max(axis=1, keepdims=True)
    codes = np.rint(x * (np.float32(32512) / top))
    return codes.astype(np.float64) * (top / np.float32(32512)).astype(np.float64)


def given(x: np.ndarray, values: ValueType) -> np.ndarray:
    return codes_of(x) if values.quantised else rounded(x, values)


@pytest.mark.parametrize("values", SLOTTED)
@pytest.mark.parametrize("shape", [(1, 3), (16, 64), (40, 200), (33, 1100), (130, 520)])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.7])
def test_products(values: ValueType, shape: tuple[int, int], density: float, avx2: Library) -> None:
    for group in (0, 64, 128) if values.quantised else (0,):
        made = source("ragged", values, shape, density=density, group=group)
        linear, weight = built(made, avx2), made.weight()
        for seed in range(3):
            x = activations(1, shape[1], seed)
            assert off(linear(x), given(x, values) @ weight.T) < 5e-7, (group, seed)


@pytest.mark.parametrize("values", SLOTTED)
@pytest.mark.parametrize(("kind", "n", "m"), [("nm", 2, 8), ("nm", 2, 4), ("ragged", 0, 0)])
def test_bytes_of_a_row_are_those_of_slots(
    values: ValueType, kind: str, n: int, m: int, avx2: Library
) -> None:
    for group in (0, 128) if values.quantised else (0,):
        made = source(kind, values, (48, 640), n=n, m=m, density=0.25, group=group)
        linear, want = built(made, avx2), row_bytes(stored(made), values, group or 512)
        assert linear.row_nbytes == want < linear.nbytes


@pytest.mark.parametrize("values", SLOTTED)
def test_patterns_that_are_hard_to_place(values: ValueType, avx2: Library) -> None:
    """Columns full and empty by turns, shifted from row to row; ways of over 255 columns; ends."""
    turns = (np.arange(576)[None, :] // 4 + np.arange(16)[:, None] // 2) % 4 == 0
    turns[:, -3:] = np.arange(16)[:, None] % 2 == 0
    far = np.zeros((16, 576), bool)
    far[:8, [0, 300, 511, 575]] = far[3:, [256, 512]] = True
    for kept, group in [(k, g) for k in (turns, far) for g in (0, 64)]:
        if group and not values.quantised:
            continue
        plain = source("ragged", values, kept.shape, group=group)
        spec = replace(plain.spec, nnz=int(kept.sum()))
        made = Source(spec, plain.codes, kept, plain.scales)
        linear, x = built(made, avx2), activations(1, kept.shape[1])
        assert linear.row_nbytes == row_bytes(kept, values, group or 512)
        assert off(linear(x), given(x, values) @ made.weight().T) < 5e-7


@pytest.mark.parametrize("values", [ValueType.INT8, ValueType.INT4])
@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_sums_of_codes_are_those_of_the_portable_way(
    values: ValueType, precision: str, avx2: Library
) -> None:
    for group in (0, 64, 192):
        made = source("ragged", values, (48, 1700), density=0.3, group=group)
        slow = CpuLinear.build(made.spec, made.pack(), Isa.PORTABLE, precision=precision, lib=avx2)  # type: ignore[arg-type]
        fast, x = built(made, avx2, precision), activations(1, 1700, group)
        assert fast.row_nbytes < fast.nbytes
        assert np.array_equal(fast(x), slow(x)), group


@pytest.mark.parametrize("values", [ValueType.INT8, ValueType.INT4])
def test_largest_codes_do_not_overflow(values: ValueType, avx2: Library) -> None:
    most = 127 if values is ValueType.INT8 else 7
    kept = np.arange(4096)[None, :] % 4 != np.arange(16)[:, None] % 4
    plain = source("ragged", values, kept.shape)
    codes = np.where(np.arange(16)[:, None] < 8, most, -most) * kept.astype(np.int8)
    spec = replace(plain.spec, nnz=int(kept.sum()))
    made = Source(spec, codes.astype(plain.codes.dtype), kept, np.ones((16, 1), BF16))
    for precision in ("int8", "int16"):
        linear = built(made, avx2, precision)
        assert linear.row_nbytes == row_bytes(kept, values)
        for sign in (1.0, -1.0):
            x = np.full((1, 4096), sign, np.float32)
            assert np.allclose(linear(x), x @ made.weight().T, rtol=1e-6)


def test_who_has_none(avx2: Library) -> None:
    sparse = source("ragged", ValueType.INT8, (64, 512), density=0.2)
    assert built(sparse, avx2).row_nbytes < built(sparse, avx2).nbytes
    assert built(sparse, avx2, "int8").row_nbytes < built(sparse, avx2, "int8").nbytes
    others = [
        built(source("ragged", ValueType.BF16, (64, 512), density=0.9), avx2),  # too full
        built(source("ragged", ValueType.FP8, (64, 512), density=0.2), avx2),
        built(source("dense", ValueType.BF16, (64, 512)), avx2),
        CpuLinear.build(sparse.spec, sparse.pack(), Isa.PORTABLE, precision="int16", lib=avx2),
    ]
    assert [each.row_nbytes == each.nbytes for each in others] == [True] * len(others)


def test_empty_windows_take_no_slot(avx2: Library) -> None:
    made = source("ragged", ValueType.BF16, (32, 512), density=0.0)
    bias = np.arange(32, dtype=np.float32)
    linear = CpuLinear.build(made.spec, made.pack(), Isa.AVX2, bias=bias, lib=avx2)
    assert np.array_equal(linear(activations(1, 512))[0], bias)


def test_where_the_file_expands_in_one_instruction(emulated: Library) -> None:
    """With VBMI2 the copy is for many zeros only; without, as on AVX2."""
    for density, vbmi2 in ((0.1, True), (0.35, False)):
        made = source("ragged", "bf16", (32, 1024), density=density)
        for isa, slotted in ((Isa.AVX512, True), (Isa.AVX512_VNNI, vbmi2)):
            linear = CpuLinear.build(made.spec, made.pack(), isa, lib=emulated)
            assert (linear.row_nbytes == built(made, emulated).row_nbytes) is slotted, isa
