"""Routed experts: each expert's matrices are decompressed as they come, into vLLM's own weights.

From there on the layer is vLLM's unquantised one, tensor and expert parallelism included. Each
rank that holds an expert decompresses its whole matrices and then keeps its slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Parameter
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)

from backends.packed.spec import PackedLinear
from backends.vllm.plugin.gather import Gather, Shard, Tensors
from backends.vllm.plugin.linear import load_format
from backends.vllm.plugin.piece import Piece, column_piece
from backends.vllm.plugin.shards import PACKED_PARTS, WEIGHT, PackedShard, PlainShard

_STEMS = {"w1": "w13", "w2": "w2", "w3": "w13"}
_Keys = dict[tuple[int, str], int]  # (expert, "w1" | "w2" | "w3"): index of the shard


class SparseExportExperts(UnquantizedFusedMoEMethod):
    """Experts of which at least one matrix is packed.

    Args:
        moe_config: the layer's.
        prefix: of the experts in the checkpoint: `model.layers.0.mlp.experts`.
        layers: packed linears below `prefix`.
    """

    def __init__(self, moe_config: Any, prefix: str, layers: Mapping[str, PackedLinear]) -> None:
        super().__init__(moe_config)
        self.supports_pre_processed_weights = False
        self._prefix = prefix
        self._packed = layers
        self._dummy = load_format() == "dummy"
        self._gather: Gather | None = None

    @property
    def supports_eplb(self) -> bool:
        """No: experts are found by the names of the checkpoint, which has no redundant ones."""
        return False

    def create_weights(self, layer: RoutedExperts, *args: Any, **kwargs: Any) -> None:
        """vLLM's resident weights, and a parameter for each part that may come."""
        super().create_weights(layer, *args, **kwargs)
        keys, shards = self._local(layer)
        names = list(keys)
        stock: Callable[..., Any] = layer.weight_loader

        def take(index: int, parts: Tensors, piece: Piece) -> None:
            expert, shard = names[index]
            weight = getattr(layer, f"{_STEMS[shard]}_{WEIGHT}")
            dense = shards[index].dense(parts, piece, weight.dtype)
            stock(weight, dense, f"{_STEMS[shard]}_{WEIGHT}", shard, expert, False)

        self._gather = Gather(shards, take)
        for stem in set(_STEMS.values()):
            for part in (*PACKED_PARTS, WEIGHT):
                name = f"{stem}_{part}"
                if part != WEIGHT:
                    layer.register_parameter(name, Parameter(torch.empty(0), requires_grad=False))
                loader = _loader(self._gather, keys, self._pieces(), part)
                getattr(layer, name).weight_loader = loader

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """Check that everything came; then what vLLM does with dense experts."""
        if self._gather is not None:
            self._gather.close(dummy=self._dummy)
            for stem in set(_STEMS.values()):
                for part in PACKED_PARTS:
                    delattr(layer, f"{stem}_{part}")
            self._gather = None
        super().process_weights_after_loading(layer)

    def _local(self, layer: Any) -> tuple[_Keys, list[Shard]]:
        """The shards of the experts that this rank holds."""
        names = {"w1": layer.ckpt_gate_proj_name, "w2": layer.ckpt_down_proj_name}
        if layer.ckpt_up_proj_name is not None:
            names["w3"] = layer.ckpt_up_proj_name
        keys: _Keys = {}
        shards: list[Shard] = []
        for expert in range(layer.global_num_experts):
            if layer.expert_map_manager.map_global_to_local(expert) == -1:
                continue
            for shard, name in names.items():
                module = f"{self._prefix}.{expert}.{name}"
                spec = self._packed.get(module)
                keys[expert, shard] = len(shards)
                shards.append(PlainShard(module) if spec is None else PackedShard(module, spec))
        return keys, shards

    def _pieces(self) -> dict[str, Piece]:
        """Whole matrices: vLLM's own loader cuts the dense ones."""
        inner = self.moe.intermediate_size_per_partition_unpadded * self.moe.tp_size
        hidden = self.moe.hidden_dim_unpadded
        up, down = column_piece(inner, hidden, 0, 1), column_piece(hidden, inner, 0, 1)
        return {"w1": up, "w2": down, "w3": up}


def _loader(
    gather: Gather, keys: _Keys, pieces: Mapping[str, Piece], part: str
) -> Callable[..., bool]:
    """Takes what `RoutedExperts.load_weights` gives; True where this rank has the expert."""

    def load(
        param: Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool:
        del param, weight_name, return_success
        index = keys.get((expert_id, shard_id))
        if index is None:
            return False
        gather.add(index, part, loaded_weight, pieces[shard_id])
        return True

    return load
