"""Write a `sparse-24-bitmask` folder, row block by row block; what it will hold, beforehand.

`--target vllm-24,layout=compressed-tensors` is these: `diagnose` of `fits`; `plan`, `write` and
`as_written` here; `read_back`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.companions import plan_companions, write_companions, write_file
from backends.hf.layout import INDEX, METADATA
from backends.hf.rounded import as_written as rounded
from backends.hf.rounded import main_dtype
from backends.vllm.legacy.config import quantization_config
from backends.vllm.legacy.encode import U8, encode_two_four
from backends.vllm.legacy.layout import Slot, index_bytes, shards
from exporter.contract import LowerPlan, PlannedFile, Progress
from exporter.model import FusedModel
from exporter.store.dtypes import F32, round_float32
from exporter.store.writer import SafetensorsWriter, header_bytes

SHARD_BYTES = 5 * 10**9
BLOCK_BYTES = 4 << 20  # of float32 rows
WRITER_BYTES = 20 << 20  # the writer's queue and the chunk in hand


def write(
    model: FusedModel,
    staging: Path,
    progress: Progress,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Weights, config and tokenizer files into the empty folder `staging`.

    Args:
        model: one that `diagnose` does not refuse.
        staging: an empty folder.
        progress: told the bytes of tensors.
        dtype: "bfloat16" or "float16"; None leaves each tensor the type it has.
        shard_bytes: of tensors in one file at most.

    Peak memory is a few row blocks, and the bitmask of one linear. Equal models, equal bytes.

    Raises:
        InputRefused: `pattern-mismatch` where a group of four has more than two non-zeros,
            `value-overflow`, `output-failed`, and what reading the model raises.
    """
    parts = shards(model, dtype, shard_bytes)
    total, done = sum(s.nbytes for shard in parts for s in shard.slots), 0
    for shard in parts:
        with SafetensorsWriter(staging / shard.file, shard.layout, METADATA) as writer:
            for slot in shard.slots:
                for name, _, _ in slot.head:
                    writer.write(name, np.array(slot.tensor.shape, np.int64).reshape(2, 1))
            for slot in shard.slots:
                _write_body(writer, slot)
                done += slot.nbytes
                progress("weights", done, total)
            writer.close()
    if len(parts) > 1:
        write_file(staging / INDEX, index_bytes(parts))
    write_companions(model, staging, main_dtype(model, dtype), _more(model))


def plan(
    model: FusedModel, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> LowerPlan:
    """Exact sizes of every file, and a bound on memory; reads headers alone."""
    parts = shards(model, dtype, shard_bytes)
    files = [
        PlannedFile(p.file, len(header_bytes(p.layout, METADATA)) + sum(s.nbytes for s in p.slots))
        for p in parts
    ]
    if len(parts) > 1:
        files.append(PlannedFile(INDEX, len(index_bytes(parts))))
    files += plan_companions(model, main_dtype(model, dtype), _more(model))
    slots = [slot for part in parts for slot in part.slots]
    held = max(_held(slot) for slot in slots)
    actions = {s.tensor.name: _action(s) for s in slots}
    packed = {s.tensor.name: s.nbytes for s in slots if s.sparse}
    return LowerPlan(tuple(files), held + 4 * BLOCK_BYTES + WRITER_BYTES, actions, packed)


def as_written(model: FusedModel, dtype: str | None = None) -> FusedModel:
    """`model` with the values as stored: each rounded once, and of 2:4 linears no -0.0."""
    stored = rounded(model, dtype)
    tensors = {
        name: replace(tensor, rows=_PlusZero(tensor.rows)) if tensor.linear else tensor
        for name, tensor in stored.tensors.items()
    }
    return replace(stored, tensors=tensors)


@dataclass(frozen=True)
class _PlusZero:
    exact: Callable[[int, int], F32]

    def __call__(self, r0: int, r1: int) -> F32:
        return self.exact(r0, r1) + np.float32(0)  # -0.0 + 0.0 is +0.0, all else stays


def _more(model: FusedModel) -> Mapping[str, Any]:
    return {"quantization_config": quantization_config(model)}


def _action(slot: Slot) -> str:
    done = "merged" if slot.tensor.changed else "copied"
    return f"{done}, {slot.dtype.value}{', 2:4' if slot.sparse else ''}"


def _held(slot: Slot) -> int:
    """Bytes in memory besides the blocks: the bitmask."""
    return prod(slot.body[1][2]) if slot.sparse else 0


def _write_body(writer: SafetensorsWriter, slot: Slot) -> None:
    name = slot.body[0][0]
    if slot.sparse:
        bits: list[U8] = []
        for r0, block in _rounded(slot):
            values, bitmask = encode_two_four(block, tensor=slot.tensor.name, row=r0)
            writer.write(name, values)
            bits.append(bitmask)
        for bitmask in bits:
            writer.write(slot.body[1][0], bitmask)
    else:
        for _, block in _rounded(slot):
            writer.write(name, block)


def _rounded(slot: Slot) -> Iterator[tuple[int, NDArray[np.generic]]]:
    tensor = slot.tensor
    step = max(1, BLOCK_BYTES // max(1, 4 * prod(tensor.shape[1:])))
    for r0 in range(0, tensor.shape[0], step):
        rows = tensor.rows(r0, min(r0 + step, tensor.shape[0]))
        yield r0, np.ascontiguousarray(round_float32(rows, slot.dtype, tensor=tensor.name))
