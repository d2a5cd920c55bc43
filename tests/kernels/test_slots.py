"""One row of x by slots on AVX2: which linears have them, how many bytes, the same products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends.packed.kernels.library import Isa, Library
from backends.packed.kernels.linear import CpuLinear
from backends.packed.values import ValueType
from tests.kernels.test_products import activations, off, quantised, rounded
from tests.packed.make import Source, source

SLOTTED = [v for v in ValueType if v is not ValueType.FP8]
SLOT_BYTES = {"bf16": 16, "fp16": 16, "fp32": 32, "int8": 8, "int4": 4}


@pytest.fixture
def avx2(kernels: Library) -> Library:
    if Isa.AVX2 not in kernels.isas():
        pytest.skip("no AVX2 here: other machines have no slots")
    return kernels


def built(made: Source, lib: Library, precision: str = "int16") -> CpuLinear:
    return CpuLinear.build(made.spec, made.pack(), Isa.AVX2, precision=precision, lib=lib)  # type: ignore[arg-type]


def slots(kept: np.ndarray) -> np.ndarray:
    """Slots of each window of 8 rows, by the definition, 4 columns apart: `[halves, windows]`."""
    rows, columns = -(-kept.shape[0] // 16) * 16, -(-kept.shape[1] // 64) * 64
    whole = np.zeros((rows, columns), np.int64)
    whole[: kept.shape[0], : kept.shape[1]] = kept
    left = whole.reshape(rows // 8, 8, columns // 4, 4).sum(axis=3)
    for i in range(left.shape[2] - 1):
        spare = left[:, :, i].max(axis=1, keepdims=True) - left[:, :, i]
        left[:, :, i + 1] -= np.minimum(spare, left[:, :, i + 1])
    return left.max(axis=1)


@pytest.mark.parametrize("values", SLOTTED)
@pytest.mark.parametrize("shape", [(1, 3), (16, 64), (40, 200), (33, 1100), (130, 520)])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_products(values: ValueType, shape: tuple[int, int], density: float, avx2: Library) -> None:
    for group in (0, 64, 128) if values.quantised else (0,):
        made = source("ragged", values, shape, density=density, group=group)
        linear, weight = built(made, avx2), made.weight()
        for seed in range(3):
            x = activations(1, shape[1], seed)
            given = quantised(x, 32767) if values.quantised else rounded(x, values)
            bound = 3e-6 if values.quantised else 5e-7
            assert off(linear(x), given @ weight.T) < bound, (group, seed)


@pytest.mark.parametrize("values", SLOTTED)
@pytest.mark.parametrize(("kind", "n", "m"), [("nm", 2, 8), ("nm", 2, 4), ("ragged", 0, 0)])
def test_bytes_of_a_row_are_those_of_slots(
    values: ValueType, kind: str, n: int, m: int, avx2: Library
) -> None:
    made = source(kind, values, (48, 640), n=n, m=m, density=0.25)
    linear, found = built(made, avx2), slots(made.kept)
    if kind == "nm":  # 8 columns apart, and as many slots as N:M has values there, fillers too
        found = np.full((found.shape[0], found.shape[1] // 2), 8 * n // m)
    stream = int(found.sum()) * (SLOT_BYTES[values.value] + 3)
    heads = found.shape[0] * (2 * (9 + found.shape[1]) + 1)  # one byte to be even
    want = -(-(stream + heads + 64) // 64) * 64 + 8 * found.shape[0]
    assert linear.row_nbytes == want < linear.nbytes


@pytest.mark.parametrize("values", SLOTTED)
def test_values_that_come_early(values: ValueType, avx2: Library) -> None:
    """Full and empty columns by turns of 4, shifted from row to row, the last ones too."""
    shape = (16, 256)
    kept = (np.arange(256)[None, :] // 4 + np.arange(16)[:, None] // 2) % 4 == 0
    kept[:, -3:] = np.arange(16)[:, None] % 2 == 0
    for group in (0, 64) if values.quantised else (0,):
        plain = source("ragged", values, shape, group=group)
        spec = replace(plain.spec, nnz=int(kept.sum()))
        made = Source(spec, plain.codes, kept, plain.scales)
        linear, x = built(made, avx2), activations(1, 256)
        assert linear.row_nbytes < linear.nbytes
        given = quantised(x, 32767) if values.quantised else rounded(x, values)
        assert off(linear(x), given @ made.weight().T) < (3e-6 if values.quantised else 5e-7)


def test_who_has_none(avx2: Library) -> None:
    sparse = source("ragged", ValueType.INT8, (64, 512), density=0.2)
    assert built(sparse, avx2).row_nbytes < built(sparse, avx2).nbytes
    others = [
        built(sparse, avx2, "int8"),  # its sums are equal on all instruction sets
        built(source("ragged", ValueType.BF16, (64, 512), density=0.6), avx2),  # too full
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
