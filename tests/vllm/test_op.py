"""The op of memory=low: what a dense linear gives, and a shape that torch.compile can trust."""

from __future__ import annotations

import pytest
import torch

from backends.packed.spec import PackedLinear
from backends.vllm.plugin import op
from backends.vllm.plugin.resident import OnCpu
from backends.vllm.plugin.settings import MEMORY, memory
from exporter.errors import UsageError
from tests.vllm.packing import How, nm, pack_weight

HOWS = [How(), nm(2, 8, "int8"), How(values="int4", group=128), How("dense")]
ROWS = (48, 16, 33, 7)


def layer(columns: int = 200) -> tuple[OnCpu, torch.nn.Module, torch.Tensor]:
    """A fused layer of four kinds, and its weight in float64."""
    kept: list[tuple[PackedLinear, dict[str, torch.Tensor]]] = []
    dense: list[torch.Tensor] = []
    for seed, (rows, how) in enumerate(zip(ROWS, HOWS, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        spec, parts, weight = pack_weight(torch.randn(rows, columns, generator=generator), how)
        kept.append((spec, parts))
        dense.append(weight.double())
    module = torch.nn.Module()
    return OnCpu(module, kept), module, torch.cat(dense)


@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_a_dense_linear(rows: tuple[int, ...], with_bias: bool) -> None:
    form, module, weight = layer()
    x = torch.randn(*rows, 200, generator=torch.Generator().manual_seed(9))
    bias = torch.linspace(-1, 1, sum(ROWS)) if with_bias else None
    found = form(module, x, bias)
    wanted = x.double() @ weight.T + (0 if bias is None else bias.double())
    assert found.shape == (*rows, sum(ROWS)) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_many_row_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    form, module, weight = layer()
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(9))
    whole = form(module, x, None)
    monkeypatch.setattr(op, "blocks_at_once", lambda columns: 1)
    torch.testing.assert_close(form(module, x, None), whole)
    torch.testing.assert_close(whole.double(), x.double() @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_narrow_type_is_rounded_once() -> None:
    form, module, weight = layer()
    x = torch.eye(200, dtype=torch.bfloat16)
    assert torch.equal(form(module, x, None), weight.T.bfloat16())


def test_parts_are_parameters_of_the_layer() -> None:
    _, module, _ = layer()
    names = {name for name, _ in module.named_parameters()}
    assert {"packed_0_mask", "packed_0_starts", "packed_1_scales", "packed_3_values"} <= names
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_fake_and_real_agree() -> None:
    """torch's own checks of a custom op: schema, fake tensors, dispatch with dynamic shapes."""
    spec, parts, _ = pack_weight(torch.randn(48, 200), How())
    op.register()
    tensors = [parts[name] for name in op.part_names(spec)]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for bias in (None, torch.zeros(48)):
        arguments = (torch.randn(3, 200), tensors, op.layout_text([spec]), bias)
        torch.library.opcheck(op.linear_op(), arguments, test_utils=tests)


def test_it_is_registered_once() -> None:
    op.register()
    form, module, _ = layer()
    op.register()
    assert form(module, torch.zeros(1, 200), None).shape == (1, sum(ROWS))


@pytest.mark.parametrize(("value", "found"), [(None, "fast"), ("low", "low"), ("FAST", "fast")])
def test_the_variable(value: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEMORY, raising=False)
    if value:
        monkeypatch.setenv(MEMORY, value)
    assert memory() == found


def test_another_value_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY, "medium")
    with pytest.raises(UsageError, match="fast or low"):
        memory()
