"""The kinds of shard: stored dense, packed by us, or compressed by compressed-tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from backends.packed.check import check, check_index
from backends.packed.cut import cut
from backends.packed.order import TILE_COLUMNS, TILE_ROWS
from backends.packed.spec import PackedLinear, Parts
from backends.packed.torch_unpack import dense_torch, fill_torch, to_numpy, to_torch
from backends.packed.values import ValueType
from backends.vllm.legacy.decode import decode_bitmask_torch
from backends.vllm.plugin.gather import Tensors
from backends.vllm.plugin.piece import Piece
from backends.vllm.plugin.resident import Kept
from exporter.errors import InputRefused

WEIGHT = "weight"
PACKED_PARTS = ("mask", "offsets", "scales", "starts", "values")
LEGACY_PARTS = ("bitmask", "compressed", "row_offsets", "shape")

_PLAIN = {
    torch.bfloat16: ValueType.BF16,
    torch.float16: ValueType.FP16,
    torch.float32: ValueType.FP32,
}


@dataclass(frozen=True)
class PlainShard:
    """A weight that the checkpoint stores dense: `weight` alone."""

    module: str

    def missing(self, have: Tensors) -> list[str]:
        """`weight`, until it is there."""
        return [] if WEIGHT in have else [WEIGHT]

    def check_part(self, part: str, tensor: torch.Tensor) -> None:
        """Only a `weight` of two dimensions is expected."""
        if part != WEIGHT or tensor.ndim != 2:
            raise _unexpected(self.module, part, "the module is not packed, by config.json")

    def dense(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """The block as it is stored."""
        weight = parts[WEIGHT]
        piece.fits(self.module, tuple(weight.shape))
        return weight[piece.r0 : piece.r1, piece.c0 : piece.c1].to(dtype)

    def fill(self, parts: Tensors, piece: Piece, out: torch.Tensor) -> None:
        """The block, rounded to the type of `out`."""
        out.copy_(self.dense(parts, piece, out.dtype))

    def keep(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> Kept:
        """The block as kind "dense", in memory of its own."""
        return kept_dense(self.dense(parts, piece, dtype).clone())


@dataclass(frozen=True)
class PackedShard:
    """A weight in the packed layout, version 1 (docs/formats/packed.md)."""

    module: str
    spec: PackedLinear

    def missing(self, have: Tensors) -> list[str]:
        """The parts of its kind that have not come."""
        return [part for part in self.spec.tensors(0) if part not in have]

    def check_part(self, part: str, tensor: torch.Tensor) -> None:
        """Name, type and shape must be those of the kind; contents wait for the other parts."""
        # How many slots a ragged int4 linear has stands in `starts`: left to `check`.
        free = self.spec.kind == "ragged" and self.spec.values is ValueType.INT4
        wanted = self.spec.tensors(0 if free else None)
        if part not in wanted:
            raise _unexpected(self.module, part, f"a {self.spec.kind} linear has no such tensor")
        dtype, shape = wanted[part]
        if free and part == "values" and tensor.ndim == 1:
            shape = tuple(tensor.shape)
        found = _array(tensor[:0])
        if found.dtype != dtype.numpy or tuple(tensor.shape) != shape:
            raise InputRefused(
                "packed-invalid",
                f"{found.dtype} {list(tensor.shape)}",
                expected=f"{dtype.value} {list(shape)}",
                tensor=f"{self.module}.{part}",
            )

    def dense(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """The block's weights."""
        out = torch.empty((piece.rows, piece.columns), dtype=dtype, device="cpu")
        self.fill(parts, piece, out)
        return out

    def fill(self, parts: Tensors, piece: Piece, out: torch.Tensor) -> None:
        """The block's weights; of the values only the tiles that hold it are read."""
        # Tiles are cut by copying; the block may begin and end inside of one.
        r0, c0 = piece.r0 // TILE_ROWS * TILE_ROWS, piece.c0 // TILE_COLUMNS * TILE_COLUMNS
        r1 = min(-(-piece.r1 // TILE_ROWS) * TILE_ROWS, piece.shape[0])
        c1 = min(-(-piece.c1 // TILE_COLUMNS) * TILE_COLUMNS, piece.shape[1])
        spec, arrays = self._checked(parts, piece, (r0, r1, c0, c1))
        if spec.shape == tuple(out.shape) and out.is_contiguous() and out.device.type == "cpu":
            fill_torch(spec, arrays, out)
            return
        weight = dense_torch(spec, arrays, out.dtype)
        row, column = piece.r0 - r0, piece.c0 - c0
        out.copy_(weight[row : row + piece.rows, column : column + piece.columns])

    def keep(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> Kept:
        """The block, still packed, in memory of its own."""
        del dtype
        spec, kept = self._checked(parts, piece, (piece.r0, piece.r1, piece.c0, piece.c1))
        return spec, {part: to_torch(array.copy()) for part, array in kept.items()}

    def _checked(
        self, parts: Tensors, piece: Piece, block: tuple[int, int, int, int]
    ) -> tuple[PackedLinear, Parts]:
        piece.fits(self.module, self.spec.shape)
        arrays = {part: _array(tensor) for part, tensor in parts.items()}
        spec = self.spec
        if not piece.whole:
            check_index(spec, arrays, self.module, None)  # a rank's values say nothing of it
            spec, arrays = cut(spec, arrays, *block)
        check(spec, arrays, self.module, None)
        return spec, arrays


@dataclass(frozen=True)
class LegacyShard:
    """A weight of a checkpoint that compressed-tensors wrote, 2:4 or unstructured, or left dense.

    Which of these it is shows in the tensors that come.
    """

    module: str
    unstructured: bool

    def missing(self, have: Tensors) -> list[str]:
        """`weight`, or all parts of the compressed form."""
        if WEIGHT in have:
            return []
        wanted = [p for p in LEGACY_PARTS if self.unstructured or p != "row_offsets"]
        return [part for part in wanted if part not in have]

    def check_part(self, part: str, tensor: torch.Tensor) -> None:
        """Contents and shapes are `decode_bitmask`'s to check."""
        del tensor
        if part == "row_offsets" and not self.unstructured:
            raise _unexpected(self.module, part, "a 2:4 linear has no such tensor")

    def dense(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
        """The block's weights. The whole is decoded, since its rows have no index of columns."""
        return PlainShard(self.module).dense(self._decoded(parts), piece, dtype)

    def fill(self, parts: Tensors, piece: Piece, out: torch.Tensor) -> None:
        """The block's weights."""
        out.copy_(self.dense(parts, piece, out.dtype))

    def keep(self, parts: Tensors, piece: Piece, dtype: torch.dtype) -> Kept:
        """The block, decoded."""
        return PlainShard(self.module).keep(self._decoded(parts), piece, dtype)

    def _decoded(self, parts: Tensors) -> Tensors:
        if WEIGHT in parts:
            return parts
        weight = decode_bitmask_torch(
            parts["compressed"],
            parts["bitmask"],
            parts["shape"],
            parts.get("row_offsets"),
            module=self.module,
        )
        return {WEIGHT: weight}


def kept_dense(weight: torch.Tensor) -> Kept:
    """A float weight `[rows, columns]` as kind "dense"."""
    shape = (weight.shape[0], weight.shape[1])
    spec = PackedLinear("dense", _PLAIN[weight.dtype], shape, weight.numel())
    return spec, {"values": weight}


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return to_numpy(tensor.cpu().contiguous())


def _unexpected(module: str, part: str, found: str) -> InputRefused:
    return InputRefused("tensor-unexpected", found, tensor=f"{module}.{part}")
