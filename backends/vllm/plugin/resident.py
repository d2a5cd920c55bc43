"""Weights that stay packed: how a layer holds them, and how it computes x W^T + b."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import Module, Parameter

from backends.packed.spec import PackedLinear
from backends.vllm.plugin.op import layout_text, linear_op, part_names, register
from backends.vllm.plugin.settings import Memory

if TYPE_CHECKING:
    from backends.packed.gpu import Tuner

Kept = tuple[PackedLinear, dict[str, torch.Tensor]]
"""A shard's block: what it is, and its checked parts."""


class Form(Protocol):
    """A layer's weight, packed."""

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x `[..., in]` times the transpose of W `[out, in]`, plus b: `[..., out]`."""
        ...


class OnCpu:
    """Parameters of the layer; decompressed at every call, some rows at a time."""

    def __init__(self, layer: Module, shards: Sequence[Kept]) -> None:
        register()
        self._layout = layout_text([spec for spec, _ in shards])
        self._names: list[str] = []
        for index, (spec, parts) in enumerate(shards):
            for part in part_names(spec):
                name = f"packed_{index}_{part}"
                layer.register_parameter(name, Parameter(parts[part], requires_grad=False))
                self._names.append(name)

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One call of the op for all shards."""
        parts = [getattr(layer, name) for name in self._names]
        return linear_op()(x, parts, self._layout, bias)


class OnGpu:
    """A `GpuLinear` for each shard, which knows the fastest way for each number of rows."""

    def __init__(
        self, shards: Sequence[Kept], dtype: torch.dtype, device: torch.device, memory: Memory
    ) -> None:
        from backends.packed.gpu import GpuLinear

        tuner = _tuner(device)
        self._linears = [
            GpuLinear.build(spec, parts, dtype=dtype, device=device, tuner=tuner, memory=memory)
            for spec, parts in shards
        ]

    def __call__(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Shard by shard; the results stand side by side."""
        del layer
        results = [linear(x) for linear in self._linears]
        whole = results[0] if len(results) == 1 else torch.cat(results, dim=-1)
        return whole if bias is None else whole + bias


@cache
def _tuner(device: torch.device) -> Tuner:
    from backends.packed.gpu import Tuner

    return Tuner.of_device(device)
