"""The linear method: gather a layer's shards, check them, and run them.

On a CPU the kernels compute a layer from its packed shards where `Execution` says so. Otherwise
"fast" decompresses every shard as soon as it has come, into the weight that a dense checkpoint
would have filled; from there on it is vLLM's own unquantised layer, and its tokens are those of
the dense checkpoint. With "low", and on a GPU, shards stay packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Module, Parameter
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import (
    ReplicatedLinear,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.utils import set_weight_attrs

from backends.packed.kernels.linear import CpuLinear
from backends.vllm.plugin.execution import Execution
from backends.vllm.plugin.gather import Gather, Shard, Tensors
from backends.vllm.plugin.parameters import PartParameter
from backends.vllm.plugin.piece import Piece
from backends.vllm.plugin.resident import Form, Kept, OnCpu, OnGpu, OnKernels
from backends.vllm.plugin.shards import WEIGHT, PackedShard, kept_dense
from exporter.errors import InputRefused


# Without this vLLM gives the layer its old loader, which compares shapes and stops.
@register_weight_loader_v2_supported_method
class SparseExportLinearMethod(UnquantizedLinearMethod):
    """A linear layer of which at least one shard is packed.

    Args:
        shards: in the order of the layer's rows.
        parts: names of tensors that may come for a shard, beside `weight`.
        execution: of the engine; one of its own where left out.
    """

    supports_pre_processed_weights = False

    def __init__(
        self, shards: Sequence[Shard], parts: Sequence[str], execution: Execution | None = None
    ) -> None:
        super().__init__()
        self._shards = tuple(shards)
        self._parts = tuple(parts)
        self._execution = execution or Execution(get_current_vllm_config_or_none())
        self._why_dense: str | None = None
        self._on_kernels = False
        self._dummy = load_format() == "dummy"
        self._gather: Gather | None = None
        self._kept: dict[int, Kept] = {}
        self._linears: dict[int, CpuLinear] = {}
        self._form: Form | None = None

    def create_weights(
        self,
        layer: Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """A parameter for each part that may come; the resident weight where it will be used."""
        del input_size, output_size
        loader = extra_weight_attrs.pop("weight_loader")
        size = (sum(output_partition_sizes), input_size_per_partition)
        packed = self._stays_packed(torch.empty(0).device, params_dtype)
        self._execution.opens()
        weight = torch.empty((0, 0) if packed else size, dtype=params_dtype)

        def take(index: int, parts: Tensors, piece: Piece) -> None:
            shard = self._shards[index]
            if packed:
                kept = _keep(shard, parts, piece, params_dtype)
                if self._on_kernels:
                    self._linears[index] = self._execution.linear(kept, params_dtype)
                else:
                    self._kept[index] = kept
                return
            shard.fill(parts, piece, weight[piece.at : piece.at + piece.rows])

        self._gather = Gather(self._shards, take)
        replicated = isinstance(layer, ReplicatedLinear)
        for part in (*self._parts, WEIGHT):
            data = weight if part == WEIGHT else torch.empty(0, dtype=params_dtype)
            parameter = PartParameter(
                data=data,
                weight_loader=loader,
                part=part,
                gather=self._gather,
                size=size,
                replicated=replicated,
            )
            layer.register_parameter(part, parameter)
            set_weight_attrs(parameter, extra_weight_attrs)

    def _stays_packed(self, device: torch.device, dtype: torch.dtype) -> bool:
        specs = [shard.spec for shard in self._shards if isinstance(shard, PackedShard)]
        if self._dummy or not specs:
            # These have no packed form, or none that is computed with.
            self._why_dense = "random weights" if self._dummy else "stored by compressed-tensors"
            return False
        if device.type == "cuda":
            return True
        self._why_dense = self._execution.why_dense(specs, dtype)
        self._on_kernels = self._why_dense is None
        return self._on_kernels or self._execution.memory == "low"

    def process_weights_after_loading(self, layer: Module) -> None:
        """Check that everything came; then what vLLM does with a dense weight, or the packed form.

        Raises:
            InputRefused: `tensor-missing`.
        """
        if self._gather is not None:
            self._gather.close(dummy=self._dummy)
            self._gather = None
            self._close(layer)
        if self._form is None:
            super().process_weights_after_loading(layer)

    def _close(self, layer: Module) -> None:
        weight = layer.get_parameter(WEIGHT).data
        for part in self._parts:
            delattr(layer, part)
        # A parameter that knows no Gather: what has come can be freed.
        layer.register_parameter(WEIGHT, Parameter(weight, requires_grad=False))
        self._form = self._formed(layer, weight)
        modules = [shard.module for shard in self._shards]
        self._execution.closes(modules, self._form, self._why_dense)

    def _formed(self, layer: Module, weight: torch.Tensor) -> Form | None:
        """What computes with the packed shards; None: the layer has its dense weight."""
        order = range(len(self._shards))
        if self._linears:
            return OnKernels(layer, [self._linears.pop(index) for index in order])
        if not self._kept:
            return None
        kept = [self._kept.pop(index) for index in order]
        if weight.device.type == "cuda":
            return OnGpu(layer, kept, weight.dtype, weight.device, self._execution.memory)
        return OnCpu(layer, kept)

    def apply(
        self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x `[..., in]` times the transpose of W `[out, in]`, plus b: `[..., out]`."""
        if self._form is not None:
            return self._form(layer, x, bias)
        return super().apply(layer, x, bias)


def _keep(shard: Shard, parts: Tensors, piece: Piece, dtype: torch.dtype) -> Kept:
    """The block packed; dense where a rank's columns begin amid a group that shares a scale."""
    try:
        return shard.keep(parts, piece, dtype)
    except InputRefused as error:
        if error.code != "packed-cut":
            raise
        return kept_dense(shard.dense(parts, piece, dtype))


def load_format() -> str:
    """How vLLM was told to load; "dummy" fills weights at random and loads nothing."""
    config = get_current_vllm_config_or_none()
    return "auto" if config is None else str(config.load_config.load_format)
