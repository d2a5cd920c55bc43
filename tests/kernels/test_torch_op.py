"""The torch operator: eager, compiled and fake give what the linear gives."""

from __future__ import annotations

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from backends.packed.kernels.library import Library
from backends.packed.kernels.linear import CpuLinear
from backends.packed.kernels.torch_op import PackedModule
from tests.packed.make import source


@pytest.fixture
def module(kernels: Library) -> PackedModule:
    made = source("ragged", "bf16", (40, 200))
    return PackedModule(CpuLinear.build(made.spec, made.pack()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_and_traced(dtype: torch.dtype, module: PackedModule) -> None:
    x = torch.randn(2, 3, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = module.linear(x)
    assert torch.equal(module(x), want) and want.dtype == dtype
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), want)
    whole = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(whole(x), want)


def test_passes_torchs_own_check(module: PackedModule) -> None:
    x = torch.randn(3, 200)
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.sparse_export.cpu_linear.default
    torch.library.opcheck(op, (x, module._key, 40), test_utils=checks)


def test_fake_needs_no_linear() -> None:
    with FakeTensorMode():
        x = torch.empty(5, 7, 200, dtype=torch.float16)
        y = torch.ops.sparse_export.cpu_linear(x, 0, 40)
    assert y.shape == (5, 7, 40) and y.dtype == torch.float32


def test_a_number_that_is_gone(module: PackedModule) -> None:
    key, x = module._key, torch.zeros(1, 200)
    with pytest.raises(ValueError, match="41"):
        torch.ops.sparse_export.cpu_linear(x, key, 41)
    module.linear = None  # type: ignore[assignment]
    gc.collect()
    with pytest.raises(ValueError, match="number"):
        torch.ops.sparse_export.cpu_linear(x, key, 40)


def test_the_operators_of_the_package_have_names_of_their_own() -> None:
    """One process may hold the GPU's and the plugin's beside this one."""
    from backends.packed.triton import ops
    from backends.vllm.plugin import op

    ops.register()
    op.register()
    names = {f"{ops.NAMESPACE}::{ops.NAME}", f"{op.NAMESPACE}::{op.NAME}"}
    assert len({*names, "sparse_export::cpu_linear"}) == 3
