"""Which tensor lies where in the external data file: decided from headers, before any byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.vllm.choose import Chosen
from backends.vllm.lower import Source, label
from exporter.errors import InputRefused
from exporter.model import FusedModel, FusedTensor, LowRank
from exporter.store.dtypes import F32, DType

FLOAT_BYTES = 4
# The ONNX spec asks for page-aligned offsets so that engines can map the file; small tensors
# keep to cache lines, since a page for each norm would be more padding than norms.
PAGE, LINE, LARGE = 4096, 64, 1 << 20
BLOCK_BYTES = 4 << 20  # of one read
STRIP = 16  # rows transposed at a time: one cache line of each stored row; wider is slower

Blocks = Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class Slot:
    """One initialiser in the data file. `blocks` gives its elements in order."""

    name: str
    shape: tuple[int, ...]  # as stored
    offset: int
    blocks: Blocks
    transposed: bool  # needs a buffer of its own size while it is written
    action: str  # for the plan
    tensor: str  # of the model, or `name` itself
    dtype: DType = DType.F32

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return int(np.prod(self.shape)) * self.dtype.nbytes

    @property
    def alignment(self) -> int:
        """Its offset is a multiple of this."""
        return PAGE if self.nbytes >= LARGE else LINE


def data_layout(model: FusedModel, packed: Mapping[str, Chosen]) -> tuple[Slot, ...]:
    """All slots in file order: the tensors of the model in spec order, then the branches.

    Args:
        model: what is written.
        packed: weight name -> how it is stored, for the linears whose parts stand in its place.

    Raises:
        InputRefused: `target-refused` for a low-rank branch on the embedding.
    """
    placed: list[Slot] = []
    end = 0
    for slot in (*_weights(model, packed), *_branches(model)):
        offset = -(-end // slot.alignment) * slot.alignment
        placed.append(replace(slot, offset=offset))
        end = offset + slot.nbytes
    return tuple(placed)


def _weights(model: FusedModel, packed: Mapping[str, Chosen]) -> Iterator[Slot]:
    matrices = {linear.weight for linear in model.spec.linears()}

    @lru_cache(maxsize=1)  # a linear's parts share its mask; that of the one before is let go
    def source(name: str) -> Source:
        return Source(model, model.tensors[name], packed[name])

    for name, tensor in model.tensors.items():
        action = "merged" if tensor.changed else "copied"
        chosen = packed.get(name)
        if chosen is not None:
            yield from _parts(chosen, source, f"{action}, {label(chosen)}")
        elif name in matrices:
            blocks, text = _transposed(tensor), f"{action}, transposed"
            yield Slot(name, tensor.shape[::-1], 0, blocks, True, text, name)
        else:
            yield Slot(name, tensor.shape, 0, _in_order(tensor), False, action, name)


def _parts(chosen: Chosen, source: Callable[[str], Source], action: str) -> Iterator[Slot]:
    weight = chosen.linear.weight

    def blocks(part: str) -> Blocks:
        return lambda: source(weight).part(part)

    for part, (dtype, shape) in chosen.tensors.items():
        name = f"{chosen.linear.module}.{part}"
        yield Slot(name, shape, 0, blocks(part), False, action, weight, dtype)


def _branches(model: FusedModel) -> Iterator[Slot]:
    for module, branch in model.branches.items():
        if f"{module}.weight" == model.spec.embedding:
            raise InputRefused(
                "target-refused", "a low-rank branch on the embedding", tensor=module
            )
        down, up = _factors(branch)
        for name, factor, blocks in (("lora_A", branch.a, down), ("lora_B", branch.b, up)):
            name = f"{module}.{name}"
            yield Slot(name, factor.shape[::-1], 0, blocks, False, "low-rank branch", name)


def _in_order(tensor: FusedTensor) -> Blocks:
    def blocks() -> Iterator[F32]:
        step = _step(tensor)
        for r0 in range(0, tensor.shape[0], step):
            yield tensor.rows(r0, min(r0 + step, tensor.shape[0]))

    return blocks


def _transposed(tensor: FusedTensor) -> Blocks:
    """`[out, in]` as `[in, out]`: the right operand of MatMul, for which DeepSparse has its
    sparse kernel. Transposing needs the tensor once in memory, never more."""

    def blocks() -> Iterator[F32]:
        rows, columns = tensor.shape
        whole = np.empty((columns, rows), np.float32)
        step = _step(tensor)
        for r0 in range(0, rows, step):
            block = tensor.rows(r0, min(r0 + step, rows))
            for k in range(0, len(block), STRIP):
                strip = block[k : k + STRIP]
                whole[:, r0 + k : r0 + k + len(strip)] = strip.T
        yield whole

    return blocks


def _step(tensor: FusedTensor) -> int:
    row = int(np.prod(tensor.shape[1:])) * FLOAT_BYTES
    return max(1, BLOCK_BYTES // row)


def _factors(branch: LowRank) -> tuple[Blocks, Blocks]:
    """`A^T [in, r]` and `scale * B^T [r, out]`, so that `y += (x A^T) (scale B^T)`."""

    def down() -> Iterator[F32]:
        yield np.ascontiguousarray(branch.a.T, np.float32)

    def up() -> Iterator[F32]:
        yield np.ascontiguousarray(branch.b.T * np.float32(branch.scale), np.float32)

    return down, up
