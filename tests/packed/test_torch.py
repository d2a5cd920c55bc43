"""The way into torch: dense weights equal the fast reader's, on the CPU and on any device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from backends.packed import torch_unpack
from backends.packed.torch_unpack import dense_torch, to_numpy, to_torch
from backends.packed.unpack import dense
from tests.packed.make import source, sources

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=60)
@given(sources((60, 200)))
def test_dense_is_that_of_the_fast_reader(made) -> None:
    parts = made.pack()
    want = torch.from_numpy(dense(made.spec, parts))
    tensors = {part: to_torch(array) for part, array in parts.items()}
    for dtype in DTYPES:
        for given_parts in (parts, tensors):
            found = dense_torch(made.spec, given_parts, dtype)
            assert found.dtype == dtype and found.is_contiguous()
            assert same_bits(found, want.to(dtype))


@settings(max_examples=40)
@given(sources((60, 200)))
def test_the_operations_of_a_device_give_the_same(made) -> None:
    """Run on the CPU here: the same torch operations serve every device."""
    parts = made.pack()
    tensors = {part: to_torch(array) for part, array in parts.items()}
    for dtype in DTYPES:
        found = torch.empty(made.spec.shape, dtype=dtype)
        torch_unpack._fill_on_device(made.spec, tensors, found)  # pyright: ignore[reportPrivateUsage]
        assert same_bits(found, torch.from_numpy(dense(made.spec, parts)).to(dtype))


@pytest.mark.parametrize("kind", ["ragged", "nm"])
def test_many_batches(kind) -> None:
    n, m = (2, 4) if kind == "nm" else (0, 0)
    made = source(kind, "bf16", (700, 500), n=n, m=m)  # 32 row blocks make one batch
    found = dense_torch(made.spec, made.pack(), torch.bfloat16)
    assert to_numpy(found).tobytes() == made.stored().tobytes()


def test_arrays_and_tensors_share_memory() -> None:
    for values in ("bf16", "fp16", "fp32", "int8", "int4", "fp8"):
        array = source("dense", values, (16, 64)).pack()["values"]
        tensor = to_torch(array)
        back = to_numpy(tensor)
        assert back.dtype == array.dtype and back.tobytes() == array.tobytes()
        assert np.shares_memory(array, back)
        array[0, 0] = 1
        assert back[0, 0] == 1


def test_a_read_only_array_is_copied() -> None:
    array = np.ones(4, np.int32)
    array.flags.writeable = False
    tensor = to_torch(array)
    tensor[0] = 7
    assert array[0] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    for kind, values in (("ragged", "bf16"), ("ragged", "int4"), ("nm", "int8"), ("dense", "fp8")):
        n, m = (2, 4) if kind == "nm" else (0, 0)
        made = source(kind, values, (100, 300), n=n, m=m)
        parts = made.pack()
        tensors = {part: to_torch(array).cuda() for part, array in parts.items()}
        found = dense_torch(made.spec, tensors, torch.float32)
        assert found.is_cuda
        assert same_bits(found.cpu(), torch.from_numpy(dense(made.spec, parts)))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return to_numpy(one).tobytes() == to_numpy(other).tobytes()
