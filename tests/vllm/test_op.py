"""The op of memory=low: what a dense linear gives, and a shape that torch.compile can trust."""

from __future__ import annotations

import pytest
import torch

from backends.packed.gpu import Tuner
from backends.vllm.plugin import op, resident
from backends.vllm.plugin.resident import Kept, OnCpu, OnGpu
from backends.vllm.plugin.settings import MEMORY, memory
from exporter.errors import UsageError
from tests.vllm.packing import How, nm, pack_weight

HOWS = [How(), nm(2, 8, "int8"), How(values="int4", group=128), How("dense")]
ROWS = (48, 16, 33, 7)


def shards(columns: int = 200) -> tuple[list[Kept], torch.Tensor]:
    """Four kinds of shard, and the weight of all in float64."""
    kept: list[Kept] = []
    dense: list[torch.Tensor] = []
    for seed, (rows, how) in enumerate(zip(ROWS, HOWS, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        spec, parts, weight = pack_weight(torch.randn(rows, columns, generator=generator), how)
        kept.append((spec, parts))
        dense.append(weight.double())
    return kept, torch.cat(dense)


def layer() -> tuple[OnCpu, torch.nn.Module, torch.Tensor]:
    """A fused layer that stays packed, and its weight."""
    kept, weight = shards()
    module = torch.nn.Module()
    return OnCpu(module, kept), module, weight


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
    assert len(list(module.parameters())) == 4 + 3 + 5 + 1  # by kind and value type
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_on_a_gpu_each_shard_is_called_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in place of the GPU, with nothing measured: how shards and bias are put together."""
    tuner = Tuner(timer=None, triton=False, sparse24=False, processors=1)
    monkeypatch.setattr(resident, "_tuner", lambda device: tuner)
    kept, weight = shards()
    module = torch.nn.Module()
    form = OnGpu(module, kept, torch.float32, torch.device("cpu"), "fast")
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(9))
    bias = torch.linspace(-1, 1, sum(ROWS))
    wanted = x.double() @ weight.T
    torch.testing.assert_close(form(module, x, None).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(form(module, x, bias).double(), wanted + bias, rtol=1e-5, atol=1e-5)
    assert any(name.startswith("packed_3_") for name, _ in module.named_parameters())


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
