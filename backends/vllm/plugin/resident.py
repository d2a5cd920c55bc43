"""Weights that stay packed: how a layer holds them, and how it computes x W^T + b."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import Module, Parameter

from backends.packed.kernels.fused import FusedLinear
from backends.packed.kernels.linear import CpuLinear
from backends.packed.kernels.torch_op import FUSED, key_of
from backends.packed.spec import PackedLinear
from backends.vllm.plugin.op import layout_text, linear_op, part_names, register
from backends.vllm.plugin.settings import Memory

if TYPE_CHECKING:
    from backends.packed.gpu import Tuner

Kept = tuple[PackedLinear, dict[str, torch.Tensor]]
"""A shard's block: what it is, and its checked parts."""


class Form(Protocol):
    """A layer's weight, packed."""

    @property
    def graph(self) -> str:
        """What the part of a compiled graph depends on, beside the layer's shape."""
        ...

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x `[..., in]` times the transpose of W `[out, in]`, plus b: `[..., out]`."""
        ...


class OnKernels:
    """The CPU kernels, all shards in one call; the packed weight lies in memory of theirs."""

    graph = "kernels"

    def __init__(self, layer: Module, linears: Sequence[CpuLinear]) -> None:
        self._fused = FusedLinear(linears)
        self.linears, self.nbytes = self._fused.linears, self._fused.nbytes
        (self._name,) = _hold(layer, "packed", [key_of(self._fused)])

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One call of the op for all shards."""
        op = getattr(torch.ops.sparse_export, FUSED)
        return op(x, getattr(layer, self._name), bias, self._fused.rows)


class OnCpu:
    """Decompressed at every call, some rows at a time."""

    graph = "rows"

    def __init__(self, layer: Module, shards: Sequence[Kept]) -> None:
        register()
        self._layout = layout_text([spec for spec, _ in shards])
        parts = [parts[name] for spec, parts in shards for name in part_names(spec)]
        self._names = _hold(layer, "packed", parts)

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One call of the op for all shards."""
        return linear_op()(x, _held(layer, self._names), self._layout, bias)


class OnGpu:
    """A `GpuLinear` for each shard, which knows the fastest way for each number of rows."""

    def __init__(
        self,
        layer: Module,
        shards: Sequence[Kept],
        dtype: torch.dtype,
        device: torch.device,
        memory: Memory,
    ) -> None:
        from backends.packed.gpu import GpuLinear

        self._calls: list[tuple[list[str], tuple[int, ...]]] = []
        for index, (spec, parts) in enumerate(shards):
            linear = GpuLinear.build(
                spec, parts, dtype=dtype, device=device, tuner=_tuner(device), memory=memory
            )
            names = _hold(layer, f"packed_{index}", linear.tensors)
            self._calls.append((names, linear.layout))
        self.graph = f"gpu {self._calls}"

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Shard by shard; the results stand side by side."""
        op = torch.ops.sparse_export.packed_linear
        results = [op(x, None, *_held(layer, names), layout) for names, layout in self._calls]
        whole = results[0] if len(results) == 1 else torch.cat(results, dim=-1)
        return whole if bias is None else whole + bias


def _hold(layer: Module, stem: str, tensors: Sequence[torch.Tensor]) -> list[str]:
    """Make tensors parameters of the layer: vLLM counts them, and torch.compile takes them as
    inputs of the graph; their names."""
    names = [f"{stem}_{index}" for index in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        layer.register_parameter(name, Parameter(tensor, requires_grad=False))
    return names


def _held(layer: Module, names: Sequence[str]) -> list[torch.Tensor]:
    return [getattr(layer, name) for name in names]


@cache
def _tuner(device: torch.device) -> Tuner:
    from backends.packed.gpu import Tuner

    return Tuner.of_device(device)
