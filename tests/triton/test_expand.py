"""Decompression in the interpreter, and that every code of int8, int4 and fp8 is read exactly."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from backends.packed.pack import pack
from backends.packed.spec import PackedLinear
from backends.packed.torch_unpack import dense_torch
from backends.packed.triton import launch
from backends.packed.triton.weight import SparseWeight, as_tensor
from backends.packed.values import ValueType
from tests.triton.cases import make

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("kind", ["ragged", "nm", "dense"])
@pytest.mark.parametrize("values", ValueType, ids=lambda v: v.value)
def test_every_value_comes_back(values: ValueType, kind: str, group: int) -> None:
    if group and not values.quantised:
        group = 0
    case = make(kind, values, (37, 130), nm=(1, 4), group=group)
    found = launch.expand(case.sparse, FP32, 0, 37)
    assert np.array_equal(found.double().numpy(), case.weight)


@pytest.mark.parametrize(("r0", "r1"), [(0, 16), (16, 37), (32, 37), (16, 48), (48, 70), (64, 70)])
def test_any_slab_of_rows(r0: int, r1: int) -> None:
    case = make("ragged", ValueType.INT4, (70, 100), group=64)
    found = launch.expand(case.sparse, FP32, r0, r1)
    assert np.array_equal(found.double().numpy(), case.weight[r0:r1])


@pytest.mark.parametrize("values", [ValueType.BF16, ValueType.INT8, ValueType.FP8])
def test_sixteen_bits_are_rounded_as_elsewhere(values: ValueType) -> None:
    case = make("ragged", values, (20, 130))
    want = dense_torch(case.spec, case.parts, BF16)
    assert torch.equal(launch.expand(case.sparse, BF16, 0, 20), want)


@pytest.mark.parametrize("values", [v for v in ValueType if v.quantised], ids=lambda v: v.value)
def test_every_code(values: ValueType) -> None:
    if values is ValueType.FP8:
        codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
        codes = codes[np.isfinite(codes.astype(np.float32))]
    else:
        most = 7 if values is ValueType.INT4 else 127
        codes = np.arange(-most, most + 1).astype(np.int8)
    line = codes[None]
    spec = PackedLinear("ragged", values, (1, codes.size), codes.size)
    scales = np.ones((1, 1), np.float32)
    parts = pack(spec, line, np.ones(line.shape, bool), scales)
    weight = SparseWeight.of(spec, {name: as_tensor(part) for name, part in parts.items()})
    found = launch.expand(weight, FP32, 0, 1).double().numpy()
    assert np.array_equal(found, line.astype(np.float64))
