"""The parameters that vLLM's loaders hand the tensors of packed layers to."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.parameter import BasevLLMParameter

from backends.vllm.plugin.gather import Gather
from backends.vllm.plugin.piece import Piece, column_piece, kv_piece, row_piece
from exporter.errors import InputRefused

_SHARD = {"q": 0, "k": 1, "v": 2}


class PartParameter(BasevLLMParameter):
    """One part (`mask`, `values`, ..., or `weight`) of all shards of a layer.

    It holds no data of the part: what comes goes to the layer's `Gather`, with the block that
    this rank keeps. The four methods are those that `weight_loader_v2` of vLLM's linear layers
    calls (vllm/model_executor/layers/linear.py); rank and count of ranks are the parameter's own,
    which the layer keeps up to date (`update_param_tp_status`).

    Args:
        data: the layer's resident weight for part `weight`, else an empty tensor.
        part: the last piece of the tensor's name.
        size: `[rows, columns]` of the layer on this rank.
        replicated: every rank holds the whole (`ReplicatedLinear`).
    """

    def __init__(
        self,
        *,  # BasevLLMParameter.__new__ takes keywords only
        data: torch.Tensor,
        weight_loader: Any,
        part: str,
        gather: Gather,
        size: tuple[int, int],
        replicated: bool = False,
    ) -> None:
        super().__init__(data=data, weight_loader=_load_whole if replicated else weight_loader)
        self._part = part
        self._gather = gather
        self._size = size
        self._replicated = replicated

    @property
    def output_dim(self) -> int:
        """Asked for by vLLM alone to split what the checkpoint holds fused: refused.

        Raises:
            InputRefused: `packed-invalid`.
        """
        raise InputRefused(
            "packed-invalid",
            "the checkpoint holds this layer's matrices fused",
            expected="each packed by itself",
            tensor=f"{self._gather.shards[0].module}.{self._part}",
        )

    def load_column_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        """Each rank keeps its rows."""
        rank, ranks = (0, 1) if self._replicated else (self.tp_rank, self.tp_size)
        self._add(0, loaded_weight, column_piece(*self._size, rank, ranks))

    def load_row_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        """Each rank keeps its columns."""
        self._add(0, loaded_weight, row_piece(*self._size, self.tp_rank, self.tp_size))

    def load_merged_column_weight(self, loaded_weight: torch.Tensor, **kwargs: Any) -> None:
        """Each rank keeps its rows of every shard; shard ids count from 0."""
        rows, at = kwargs["shard_size"], kwargs["shard_offset"]
        piece = column_piece(rows, self._size[1], self.tp_rank, self.tp_size, at)
        self._add(kwargs["shard_id"], loaded_weight, piece)

    def load_qkv_weight(self, loaded_weight: torch.Tensor, **kwargs: Any) -> None:
        """Each rank keeps the rows of its heads; `num_heads` is how many ranks share a KV head."""
        shard, rows, at = kwargs["shard_id"], kwargs["shard_size"], kwargs["shard_offset"]
        replicas = 1 if shard == "q" else kwargs["num_heads"]
        piece = kv_piece(rows, self._size[1], self.tp_rank, self.tp_size, replicas, at)
        self._add(_SHARD[shard], loaded_weight, piece)

    def _add(self, index: int, tensor: torch.Tensor, piece: Piece) -> None:
        self._gather.add(index, self._part, tensor, piece)


def _load_whole(parameter: PartParameter, loaded_weight: torch.Tensor) -> None:
    # ReplicatedLinear has only the old loader, which compares shapes and knows no parts.
    parameter.load_column_parallel_weight(loaded_weight)
