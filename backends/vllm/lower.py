"""Write a packed folder's safetensors files, row blocks at a time; their exact sizes beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.companions import write_file
from backends.hf.layout import INDEX, METADATA
from backends.packed.pack import Index, index, mask_chunks, pack_scales, value_chunks
from backends.vllm.choose import Chosen
from backends.vllm.counts import mask
from backends.vllm.layout import Piece, Shard, index_bytes
from exporter.contract import LowerPlan, PlannedFile, Progress
from exporter.model import FusedModel, FusedTensor
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import round_float32
from exporter.store.writer import SafetensorsWriter

BLOCK_BYTES = 4 << 20  # of float32 rows
WRITER_BYTES = 20 << 20  # the writer's queue and the chunk in hand
_BLOCKS = 8  # alive at once while one is packed: float32, kept, in tiles, packed

Blocks = Iterator[NDArray[Any]]


def write_shards(
    model: FusedModel, parts: Sequence[Shard], folder: Path, progress: Progress
) -> None:
    """All files, and the index where there is more than one.

    Peak memory is a few row blocks and, of one linear, the mask and where its values lie. Equal
    models give equal bytes.

    Raises:
        InputRefused: `value-overflow` for a value beyond the stored type, `output-failed`, and
            what reading the model raises.
    """
    total, done = sum(p.nbytes for shard in parts for p in shard.pieces), 0
    for shard in parts:
        source: Source | None = None
        with SafetensorsWriter(folder / shard.file, shard.layout, METADATA) as writer:
            for piece in shard.pieces:
                if source is None or source.tensor is not piece.tensor:
                    source = Source(model, piece.tensor, piece.chosen)
                for block in source.blocks(piece):
                    writer.write(piece.name, block)
                done += piece.nbytes
                progress("weights", done, total)
            writer.close()
    if len(parts) > 1:
        write_file(folder / INDEX, index_bytes(parts))


def plan_shards(parts: Sequence[Shard], chosen: Mapping[str, Chosen]) -> LowerPlan:
    """Exact sizes, and a bound on memory."""
    files = [PlannedFile(shard.file, shard.nbytes) for shard in parts]
    if len(parts) > 1:
        files.append(PlannedFile(INDEX, len(index_bytes(parts))))
    pieces = [piece for shard in parts for piece in shard.pieces]
    return LowerPlan(
        files=tuple(files),
        peak_bytes=packing_bytes(chosen.values()) + WRITER_BYTES,
        actions={p.tensor.name: _action(p) for p in pieces},
        packed={name: each.nbytes for name, each in chosen.items()},
    )


def label(chosen: Chosen) -> str:
    """ "2:4", "ragged" or "dense": how a linear is stored."""
    spec = chosen.spec
    return f"{spec.n}:{spec.m}" if spec.kind == "nm" else spec.kind


def packing_bytes(chosen: Iterable[Chosen]) -> int:
    """Bound on the memory that packing these linears one by one takes, the writer's excepted."""
    return max(map(_held, chosen), default=0) + _BLOCKS * BLOCK_BYTES


def _held(chosen: Chosen) -> int:
    """Bytes of the mask, twice while it is made, and of offsets, counts and scales."""
    small = sum(
        prod(shape) * dtype.nbytes
        for part, (dtype, shape) in chosen.tensors.items()
        if part in ("offsets", "starts", "scales")
    )
    return 2 * prod(chosen.spec.shape) // 8 + 4 * small


def _action(piece: Piece) -> str:
    done = "merged" if piece.tensor.changed else "copied"
    if piece.chosen is None:
        return f"{done}, {piece.dtype.value}"
    return f"{done}, {label(piece.chosen)}, {piece.chosen.spec.values.value}"


class Source:
    """The blocks of one tensor's parts; keeps what several of them need."""

    def __init__(self, model: FusedModel, tensor: FusedTensor, chosen: Chosen | None) -> None:
        self.tensor = tensor
        self._model = model
        self._chosen = chosen

    def blocks(self, piece: Piece) -> Blocks:
        """A part, some rows at a time."""
        return self._plain(piece) if self._chosen is None else self.part(piece.part)

    def part(self, part: str) -> Blocks:
        """A part of a packed linear by its name, some rows at a time."""
        spec = self._packed.spec
        if part == "mask":
            return mask_chunks(spec, self._mask.rows)
        if part == "values":
            kept = None if spec.kind == "dense" else self._mask.rows
            return value_chunks(spec, self._values, kept)
        if part == "scales":
            return self._scales()
        return iter([self._index.offsets if part == "offsets" else self._index.starts])

    @property
    def _packed(self) -> Chosen:
        if self._chosen is None:
            raise ValueError(f"{self.tensor.name} is not packed")
        return self._chosen

    @cached_property
    def _mask(self) -> Mask:
        return mask(self._model, self._packed.linear)

    @cached_property
    def _index(self) -> Index:
        return index(self._packed.spec, self._mask)

    def _values(self, r0: int, r1: int) -> NDArray[Any]:
        if self.tensor.quantised is not None:
            return self.tensor.quantised.codes(r0, r1)
        dtype = self._packed.spec.values.dtype
        return round_float32(self.tensor.rows(r0, r1), dtype, tensor=self.tensor.name)

    def _scales(self) -> Blocks:
        quantised = self.tensor.quantised
        if quantised is None:
            raise ValueError(f"{self.tensor.name} has no scales: the model was not quantised")
        for r0, r1 in _steps(self.tensor.shape):
            yield pack_scales(self._packed.spec, quantised.scales(r0, r1))

    def _plain(self, piece: Piece) -> Blocks:
        for r0, r1 in _steps(self.tensor.shape):
            rows = self.tensor.rows(r0, r1)
            yield np.ascontiguousarray(round_float32(rows, piece.dtype, tensor=piece.name))


def _steps(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // max(1, 4 * prod(shape[1:])))
    for r0 in range(0, shape[0], step):
        yield r0, min(r0 + step, shape[0])
