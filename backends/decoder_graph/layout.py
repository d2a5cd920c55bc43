"""Which tensor lies where in the external data file: decided from headers, before any byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from backends.decoder_graph.options import GraphOptions
from exporter.errors import InputRefused
from exporter.model import FusedModel, FusedTensor, LowRank
from exporter.store.dtypes import F32

FLOAT_BYTES = 4
# The ONNX spec asks for page-aligned offsets so that engines can map the file; small tensors
# keep to cache lines, since a page for each norm would be more padding than norms.
PAGE, LINE, LARGE = 4096, 64, 1 << 20
BLOCK_BYTES = 4 << 20  # of one read
STRIP = 16  # rows transposed at a time: one cache line of each stored row; wider is slower

Blocks = Callable[[], Iterator[F32]]


@dataclass(frozen=True)
class Slot:
    """One initialiser in the data file. `blocks` gives its float32 bytes in order."""

    name: str
    shape: tuple[int, ...]  # as stored
    offset: int
    blocks: Blocks
    transposed: bool  # needs a buffer of its own size while it is written
    action: str  # for the plan

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return int(np.prod(self.shape)) * FLOAT_BYTES

    @property
    def alignment(self) -> int:
        """Its offset is a multiple of this."""
        return PAGE if self.nbytes >= LARGE else LINE


def data_layout(model: FusedModel, options: GraphOptions) -> tuple[Slot, ...]:
    """All slots in file order: the tensors of the model in spec order, then the branches.

    Raises:
        InputRefused: `target-refused` for a low-rank branch on the embedding.
    """
    spec = model.spec
    matrices = {linear.weight for linear in spec.linears()}
    slots: list[Slot] = []
    end = 0

    def add(name: str, shape: tuple[int, ...], blocks: Blocks, wide: bool, action: str) -> None:
        nonlocal end
        slot = Slot(name, shape, 0, blocks, wide, action)
        offset = -(-end // slot.alignment) * slot.alignment
        slots.append(Slot(name, shape, offset, blocks, wide, action))
        end = offset + slot.nbytes

    for tensor in model.tensors.values():
        action = "merged" if tensor.changed else "copied"
        if tensor.name in matrices:
            add(tensor.name, tensor.shape[::-1], _transposed(tensor), True, f"{action}, transposed")
        else:
            add(tensor.name, tensor.shape, _in_order(tensor), False, action)
    for module, branch in model.branches.items():
        if f"{module}.weight" == spec.embedding:
            raise InputRefused(
                "target-refused", "a low-rank branch on the embedding", tensor=module
            )
        down, up = _factors(branch)
        add(f"{module}.lora_A", branch.a.shape[::-1], down, False, "low-rank branch")
        add(f"{module}.lora_B", branch.b.shape[::-1], up, False, "low-rank branch")
    return tuple(slots)


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
