"""Linears side by side: one call gives what each gives alone, eager and compiled."""

from __future__ import annotations

import gc
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from backends.packed.kernels import fused
from backends.packed.kernels.fused import FusedLinear
from backends.packed.kernels.library import Library
from backends.packed.kernels.linear import CpuLinear
from backends.packed.kernels.torch_op import key_of
from tests.packed.make import Source, source

COLUMNS = 200
SOURCES = [
    source("ragged", "bf16", (48, COLUMNS), seed=1),
    source("nm", "bf16", (33, COLUMNS), n=2, m=4, seed=2),
    source("dense", "bf16", (7, COLUMNS), seed=3),
]
OTHERS = [
    source("ragged", "int8", (16, COLUMNS), seed=4),
    source("nm", "int4", (17, COLUMNS), n=4, m=8, group=128, seed=5),
    source("ragged", "fp32", (20, COLUMNS), seed=6),
    source("ragged", "fp8", (5, COLUMNS), seed=7),
]
BOUNDS = {torch.bfloat16: 3e-3, torch.float16: 4e-4}  # of results rounded to the type of x


def build(sources: list[Source]) -> FusedLinear:
    return FusedLinear([CpuLinear.build(s.spec, s.pack(), precision="int16") for s in sources])


def dense(sources: list[Source]) -> torch.Tensor:
    return torch.cat([torch.from_numpy(made.weight()) for made in sources])


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def off(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found.double() - want).norm() / want.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), (200,)])
def test_bfloat16_against_float64(rows: tuple[int, ...], bias: bool, kernels: Library) -> None:
    layer, weight = build(SOURCES), dense(SOURCES)
    x = activations(*rows, COLUMNS, dtype=torch.bfloat16)
    b = torch.linspace(-9, 9, len(weight)).bfloat16() if bias else None
    found = layer(x, b)
    want = x.double() @ weight.T + (0 if b is None else b.double())
    assert found.shape == want.shape and found.dtype == torch.bfloat16
    assert off(found, want) < BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_codes_beside_floats(dtype: torch.dtype, kernels: Library) -> None:
    layer, weight = build(OTHERS), dense(OTHERS)
    x = activations(4, COLUMNS, dtype=dtype)
    found = layer(x)
    assert found.dtype == dtype
    at = 0
    for made in OTHERS:  # apart: their sizes differ
        rows = slice(at, at := at + made.spec.shape[0])
        integer = made.spec.values.value.startswith("int")
        bound = BOUNDS.get(dtype, 5e-5 if integer else 5e-7)
        assert off(found[:, rows], x.double() @ weight[rows].T) < bound, made.spec


def test_no_rows_and_rows_with_a_stride(kernels: Library) -> None:
    layer, weight = build(SOURCES), dense(SOURCES)
    assert layer(torch.empty(0, COLUMNS)).shape == (0, len(weight))
    wide = activations(6, 3 * COLUMNS, dtype=torch.bfloat16)
    for x in (wide[:, COLUMNS : 2 * COLUMNS], wide[::2, :COLUMNS], wide[:, : 2 * COLUMNS : 2]):
        assert torch.equal(layer(x), layer(x.contiguous()))


def test_many_rows_are_taken_some_at_a_time(
    monkeypatch: pytest.MonkeyPatch, kernels: Library
) -> None:
    layer, x = build(SOURCES), activations(37, COLUMNS, dtype=torch.bfloat16)
    whole = layer(x, torch.ones(layer.rows))
    monkeypatch.setattr(fused, "_SCRATCH_BYTES", 0)
    monkeypatch.setattr(fused, "_LEAST_ROWS", 8)
    assert off(layer(x, torch.ones(layer.rows)), whole.double()) < BOUNDS[torch.bfloat16]


def test_linears_that_share_no_x_are_refused(kernels: Library) -> None:
    wide = source("ragged", "bf16", (16, COLUMNS + 1))
    with pytest.raises(ValueError, match="2 kinds"):
        build([SOURCES[0], wide])
    with pytest.raises(ValueError, match="0 linears"):
        FusedLinear([])
    with pytest.raises(ValueError, match="17 linears"):
        build([SOURCES[2]] * 17)


class Layer(torch.nn.Module):
    """As an engine's layer holds it: the number is a parameter."""

    def __init__(self, held: FusedLinear) -> None:
        super().__init__()
        self.rows = held.rows
        self.key = torch.nn.Parameter(key_of(held), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.sparse_export.cpu_fused(x * 2, self.key, None, self.rows) + 1


def test_compiled_and_exported(kernels: Library) -> None:
    held = build(SOURCES)
    layer, x = Layer(held), activations(3, COLUMNS, dtype=torch.bfloat16)
    want = held(x * 2) + 1
    assert torch.equal(layer(x), want)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), want)
    exported = torch.export.export(layer, (x,))
    assert torch.equal(exported.module()(x), want)
    (call,) = [node for node in exported.graph.nodes if "cpu_fused" in str(node.target)]
    # A graph on the disk must not hold a number of this process.
    assert [a for a in call.args if not isinstance(a, torch.fx.Node)] == [None, layer.rows]


def test_passes_torchs_own_check(kernels: Library) -> None:
    held = build(SOURCES)
    key, op = key_of(held), torch.ops.sparse_export.cpu_fused.default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for dtype in (torch.float16, torch.bfloat16):
        for bias in (None, torch.zeros(held.rows, dtype=dtype)):
            x = activations(3, COLUMNS, dtype=dtype)
            torch.library.opcheck(op, (x, key, bias, held.rows), test_utils=tests)


def test_a_number_that_is_gone(kernels: Library) -> None:
    held = build(SOURCES)
    key, x = key_of(held), torch.zeros(1, COLUMNS)
    op, rows = torch.ops.sparse_export.cpu_fused, held.rows
    with pytest.raises(ValueError, match=f"{rows + 1} rows"):
        op(x, key, None, rows + 1)
    del held
    gc.collect()
    with pytest.raises(ValueError, match="number"):
        op(x, key, None, rows)


@pytest.fixture
def shared(kernels: Library) -> Generator[Library]:
    before = kernels.threads
    yield kernels
    kernels.share_threads(0)
    kernels.threads = before


@pytest.mark.parametrize("count", [1, 3])
def test_torchs_threads_run_the_calls(count: int, shared: Library) -> None:
    """Of several callers at once too, each with a team of its own."""
    layer, x = build(SOURCES), activations(70, COLUMNS, dtype=torch.bfloat16)
    want = layer(x)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert shared.share_threads(count) and shared.threads == count
        assert torch.equal(layer(x), want)
        assert torch.equal(build(SOURCES)(x), want)  # built by those threads
        with ThreadPoolExecutor(3) as callers:
            assert all(torch.equal(y, want) for y in callers.map(layer, [x] * 30))
    finally:
        torch.set_num_threads(before)
    assert shared.share_threads(0)
    assert torch.equal(layer(x), want)
