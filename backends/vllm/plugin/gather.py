"""A layer's tensors as they come from the checkpoint, in any order, shard by shard.

A fused layer (qkv_proj, gate_up_proj) has a shard per matrix of the checkpoint. As soon as all
parts of a shard are there it is handed on and forgotten, so that packed and resident weights are
never all in memory at once. What must wait for other parts is copied: a loader may use its
buffer again for the next tensor. The part that completes a shard is not. The exporter writes a
module's tensors in alphabetical order, so it is the values, by far the largest, that come last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from backends.vllm.plugin.pages import UsedPages
from backends.vllm.plugin.piece import Piece
from backends.vllm.plugin.resident import Kept
from exporter.errors import InputRefused

Tensors = Mapping[str, torch.Tensor]
_USED = UsedPages()  # of all layers: they come from the same files


class Shard(Protocol):
    """One matrix of the checkpoint: which tensors it has and what they say."""

    @property
    def module(self) -> str:
        """Its name in the checkpoint."""
        ...

    def missing(self, have: Tensors) -> list[str]:
        """Parts that are still needed beside `have`."""
        ...

    def check_part(self, part: str, tensor: torch.Tensor) -> None:
        """Refuse what cannot be that part: name, dtype, shape.

        Raises:
            InputRefused: `tensor-unexpected`, `packed-invalid`.
        """
        ...

    def dense(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """The block's weights `[piece.rows, piece.columns]`, after every check.

        Raises:
            InputRefused: `packed-invalid`, `tensor-shape`.
        """
        ...

    def fill(self, parts: Tensors, piece: Piece, out: torch.Tensor) -> None:
        """Write the same into `out` `[piece.rows, piece.columns]`, in its type.

        Raises:
            InputRefused: as `dense`; `out` is then as it was.
        """
        ...

    def keep(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> Kept:
        """The same block packed, in memory of its own; a plain weight as kind "dense" in `dtype`.

        Raises:
            InputRefused: as `dense`.
        """
        ...


class Gather:
    """The shards of one layer and what has come of them.

    Args:
        take: called with a shard's index, its parts and the block to keep, once for each shard.
    """

    def __init__(
        self, shards: Sequence[Shard], take: Callable[[int, Tensors, Piece], None]
    ) -> None:
        self.shards = tuple(shards)
        self._take: Callable[[int, Tensors, Piece], None] | None = take
        self._waiting: list[dict[str, torch.Tensor]] = [{} for _ in shards]
        self._done: set[int] = set()

    def add(self, index: int, part: str, tensor: torch.Tensor, piece: Piece) -> None:
        """Take a tensor of the checkpoint.

        Raises:
            InputRefused: `tensor-duplicate`, and what `Shard` raises.
        """
        if self._take is None:
            raise InputRefused("tensor-unexpected", "weights were loaded before", tensor=part)
        shard, waiting = self.shards[index], self._waiting[index]
        name = f"{shard.module}.{part}"
        if part in waiting:
            raise InputRefused("tensor-duplicate", "it comes twice", tensor=name)
        shard.check_part(part, tensor)
        if index in self._done:
            raise InputRefused(
                "tensor-unexpected", "the module is complete without it", tensor=name
            )
        have = {**waiting, part: tensor}
        if shard.missing(have):
            waiting[part] = tensor.detach().clone()
            _USED.note(tensor)
            return
        self._take(index, have, piece)
        _USED.note(tensor)
        waiting.clear()
        self._done.add(index)

    @property
    def closed(self) -> bool:
        """Whether loading is over."""
        return self._take is None

    def close(self, *, dummy: bool = False) -> None:
        """Check that every shard is complete: vLLM does not, for quantised checkpoints.

        What `take` holds is let go. vLLM keeps the attributes of the first parameters for a later
        reload (vllm/model_executor/model_loader/reload/meta.py), this object among them; a weight
        that lived on here would be held twice.

        Args:
            dummy: nothing was loaded, and nothing should have been.

        Raises:
            InputRefused: `tensor-missing`.
        """
        self._take = None
        for index, shard in enumerate(() if dummy else self.shards):
            if index in self._done:
                continue
            have = self._waiting[index]
            absent = shard.missing(have)
            found = f"{', '.join(have)} came, but not {', '.join(absent)}" if have else "missing"
            raise InputRefused("tensor-missing", found, tensor=f"{shard.module}.{absent[0]}")
