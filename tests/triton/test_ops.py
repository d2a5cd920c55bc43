"""The operator: one opaque node, right for every path, with shapes that a tracer can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from backends.packed.gpu import GpuLinear
from backends.packed.gpu_tune import Resident
from backends.packed.torch_unpack import dense_torch
from backends.packed.triton import half, ops
from backends.packed.triton.plan import ANY, Path, Plan, Step, read_step
from backends.packed.values import ValueType
from tests.triton.cases import Case, check, make, rows

BF16, FP32 = torch.bfloat16, torch.float32
NONE = torch.empty(0, dtype=BF16)
EVERY = Plan(
    (Step(2, Path.TRITON, (2, 2, 4, 2)), Step(5, Path.SLABS, (16,)), Step(ANY, Path.DENSE))
)


def linear(case: Case, plan: Plan = EVERY, dtype: torch.dtype = BF16) -> GpuLinear:
    dense = dense_torch(case.spec, case.parts, dtype)
    return GpuLinear(case.spec, plan, Resident(case.sparse, dense, NONE))


@pytest.mark.parametrize("m", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("biased", [False, True])
def test_each_path_gives_the_product(m: int, biased: bool) -> None:
    case = make("ragged", ValueType.BF16, (37, 130))
    x = rows(case, m, BF16)
    bias = torch.linspace(-1, 1, 37).to(BF16) if biased else None
    check(case, x, bias, linear(case)(x, bias))


def test_any_number_of_leading_dimensions() -> None:
    case = make("nm", ValueType.INT8, (20, 70), nm=(2, 4))
    x = rows(case, 4, BF16)
    run = linear(case, Plan((Step(ANY, Path.TRITON, (1, 1, 4, 2)),)))
    whole = run(x)
    assert torch.equal(run(x.view(2, 2, 70)), whole.view(2, 2, 20))
    assert torch.equal(run(x[0]), whole[0])
    assert run(x[:0]).shape == (0, 20)
    turned = x.t().contiguous().t()  # last dimension not contiguous
    assert torch.equal(run(turned), whole)


def arguments(case: Case, m: int) -> tuple[Any, ...]:
    run = linear(case)
    return rows(case, m, BF16), None, *run.tensors, run.layout


@pytest.mark.parametrize("m", [1, 4, 6])
def test_opcheck(m: int) -> None:
    """Schema, fake implementation and dispatch, as torch itself checks an operator."""
    case = make("ragged", ValueType.INT4, (20, 70), group=64)
    ops.register()
    torch.library.opcheck(
        torch.ops.sparse_export.packed_linear.default,
        arguments(case, m),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_registering_again_changes_nothing() -> None:
    ops.register()
    before = torch.ops.sparse_export.packed_linear.default
    ops.register()
    assert torch.ops.sparse_export.packed_linear.default is before


def test_one_graph_without_breaks_serves_every_number_of_rows() -> None:
    """M is symbolic in the graph; which path it takes is decided when it runs."""
    case = make("ragged", ValueType.BF16, (20, 70))
    run = linear(case)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: run(x) + 1, backend=backend, fullgraph=True)
    for m in (2, 4, 6):
        x = rows(case, m, BF16)
        torch._dynamo.mark_dynamic(x, 0)  # as vLLM marks its tokens
        assert torch.equal(compiled(x), run(x) + 1)
    assert len(graphs) == 1
    targets = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert any("packed_linear" in str(target) for target in targets)


def test_a_stored_graph_follows_the_plan_of_this_process() -> None:
    """The plan is a tensor among the arguments and no number in the graph."""
    case = make("ragged", ValueType.BF16, (20, 70))
    x, bias, *tensors, layout = arguments(case, 1)
    tensors[-1] = Plan((Step(ANY, Path.DENSE),)).tensor()
    tensors[5] = torch.full_like(tensors[5], 2)
    found = torch.ops.sparse_export.packed_linear(x, bias, *tensors, layout)
    want = x.double().sum() * 2
    assert np.allclose(found.double().numpy(), want.item(), rtol=0.01)


def test_half_takes_padded_rows_and_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("nm", ValueType.BF16, (32, 64), nm=(2, 4))
    dense = dense_torch(case.spec, case.parts, BF16)
    seen: list[tuple[tuple[int, ...], int]] = []

    def sparse_mm(packed: torch.Tensor, right: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["transpose_result"]
        seen.append((tuple(right.shape), options["alg_id"]))
        return torch.nn.functional.linear(right.t(), packed, options["bias"])

    monkeypatch.setattr(torch, "_cslt_sparse_mm", sparse_mm)
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight)  # pyright: ignore
    plan = Plan((Step(ANY, Path.HALF, (3,)),))
    run = GpuLinear(case.spec, plan, Resident(case.sparse, dense, half.compress(dense)))
    bias = torch.linspace(-1, 1, 32).to(BF16)
    for m, padded in ((1, 8), (8, 8), (9, 16)):
        x = rows(case, m, BF16)
        check(case, x, bias, run(x, bias))
        assert seen[-1] == ((64, padded), 3)


def test_search_runs_on_the_rows_that_the_product_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def found(packed: torch.Tensor, right: torch.Tensor, **options: Any) -> int:
        shapes.append(tuple(right.shape))
        return 5

    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", found)
    assert half.search(NONE, torch.zeros(3, 64)) == 5
    assert shapes == [(64, 8)]


@pytest.mark.parametrize(
    ("shape", "nm", "dtype", "why"),
    [
        ((32, 64), (2, 4), BF16, None),
        ((32, 64), (1, 8), BF16, None),
        ((32, 64), (3, 4), BF16, "not 2:4"),
        ((32, 64), (4, 8), BF16, "not 2:4"),
        ((32, 64), (2, 4), FP32, "16-bit"),
        ((20, 64), (2, 4), BF16, "multiple of 16"),
    ],
)
def test_what_half_takes(
    shape: tuple[int, int], nm: tuple[int, int], dtype: torch.dtype, why: str | None
) -> None:
    found = half.unfit(make("nm", ValueType.BF16, shape, nm=nm).spec, dtype)
    assert found is None if why is None else why in str(found)


def test_half_takes_no_other_kind() -> None:
    assert half.unfit(make("ragged", ValueType.BF16, (32, 64)).spec, BF16)
    assert half.unfit(make("dense", ValueType.BF16, (32, 64)).spec, BF16)


def test_a_plan_survives_its_tensor() -> None:
    table = EVERY.tensor()
    assert table.device.type == "cpu" and table.dtype == torch.int64
    for m in (0, 1, 2, 3, 5, 6, 10**9):
        step = EVERY.step(m)
        path, args = read_step(table, m)
        assert path is step.path and tuple(args[: len(step.args)]) == step.args


@pytest.mark.parametrize("ends", [(), (1,), (2, 1, ANY), (1, 1, ANY), (ANY, ANY)])
def test_a_plan_has_no_holes(ends: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ends at any number"):
        Plan(tuple(Step(end, Path.DENSE) for end in ends))
