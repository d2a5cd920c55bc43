"""Write the fused tensors into safetensors files, row block by row block, rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.companions import write_file
from backends.hf.layout import INDEX, METADATA, Shard, Slot, index_bytes
from exporter.adapters.tiles import TILE_ROWS
from exporter.ahead import THREADS, ahead
from exporter.contract import LowerPlan, PlannedFile, Progress
from exporter.store.dtypes import round_float32
from exporter.store.writer import SafetensorsWriter, header_bytes

BLOCK_BYTES = 2 << 20  # of float32 rows: stays in the cache, and the allocator keeps its pages
WRITER_BYTES = 20 << 20  # the writer's queue and the chunk in hand


def write_shards(parts: Sequence[Shard], folder: Path, progress: Progress) -> None:
    """All files, and the index where there is more than one.

    Peak memory is a few row blocks; a transposed linear is whole in memory, in its stored type.
    Equal models give equal bytes.

    Raises:
        InputRefused: `value-overflow` for a value beyond the stored type, `output-failed`, and
            what reading the model raises.
    """
    total, done = sum(s.nbytes for shard in parts for s in shard.slots), 0
    for shard in parts:
        with SafetensorsWriter(folder / shard.file, shard.layout, METADATA) as writer:
            for slot in shard.slots:
                # A call of its own, so that the last block is freed before the next is made.
                _write_slot(writer, slot)
                done += slot.nbytes
                progress("weights", done, total)
            writer.close()
    if len(parts) > 1:
        write_file(folder / INDEX, index_bytes(parts))


def plan_shards(parts: Sequence[Shard]) -> LowerPlan:
    """Exact sizes, and a bound on memory."""
    files = [
        PlannedFile(p.file, len(header_bytes(p.layout, METADATA)) + sum(s.nbytes for s in p.slots))
        for p in parts
    ]
    if len(parts) > 1:
        files.append(PlannedFile(INDEX, len(index_bytes(parts))))
    slots = [slot for part in parts for slot in part.slots]
    block = max(4 * _block_rows(s.shape) * prod(s.shape[1:]) for s in slots)
    held = max(s.nbytes if s.transposed else block for s in slots)
    actions = {s.tensor.name: _action(s) for s in slots}
    # Of each block under way: as stored, in float32, merged, rounded.
    under_way = 4 * block * THREADS
    return LowerPlan(tuple(files), held + under_way + WRITER_BYTES, actions)


def _action(slot: Slot) -> str:
    return f"{'merged' if slot.tensor.changed else 'copied'}, {slot.dtype.value}"


def _write_slot(writer: SafetensorsWriter, slot: Slot) -> None:
    if not slot.transposed:
        for _, block in _rounded(slot):
            writer.write(slot.tensor.name, block)
        return
    whole = np.empty(slot.shape, slot.dtype.numpy)
    for r0, block in _rounded(slot):
        whole[:, r0 : r0 + len(block)] = block.T
    writer.write(slot.tensor.name, whole)


def _rounded(slot: Slot) -> Iterator[tuple[int, NDArray[np.generic]]]:
    tensor = slot.tensor
    step = _block_rows(tensor.shape)
    starts = range(0, tensor.shape[0], step)

    def block(r0: int) -> NDArray[np.generic]:
        rows = tensor.rows(r0, min(r0 + step, tensor.shape[0]))
        return np.ascontiguousarray(round_float32(rows, slot.dtype, tensor=tensor.name))

    return zip(starts, ahead(block, starts), strict=True)


def _block_rows(shape: Sequence[int]) -> int:
    """Rows of one block: whole tiles of a delta, so that none is computed twice."""
    rows = BLOCK_BYTES // max(1, 4 * prod(shape[1:]))
    return max(TILE_ROWS, rows // TILE_ROWS * TILE_ROWS)
