"""Which tensors a `sparse-24-bitmask` folder holds and in which file, decided from headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from backends.hf.layout import SINGLE
from backends.hf.rounded import dtypes
from exporter.model import FusedModel, FusedTensor
from exporter.store.dtypes import DType
from exporter.store.jsonio import dump_json
from exporter.store.writer import Layout

Row = tuple[str, DType, tuple[int, ...]]


@dataclass(frozen=True)
class Slot:
    """One tensor of the model: stored as it is, or as `compressed`, `bitmask` and `shape`."""

    tensor: FusedTensor
    dtype: DType

    @property
    def sparse(self) -> bool:
        """Whether it is the matrix of a linear."""
        return self.tensor.linear is not None

    def part(self, name: str) -> str:
        """`P.compressed` of `P.weight`."""
        return f"{self.tensor.name.removesuffix('.weight')}.{name}"

    @property
    def head(self) -> Sequence[Row]:
        """What stands before all else, since it is aligned to 8 bytes."""
        return [(self.part("shape"), DType.I64, (2, 1))] if self.sparse else []

    @property
    def body(self) -> Sequence[Row]:
        """What is written from the rows."""
        if not self.sparse:
            return [(self.tensor.name, self.dtype, self.tensor.shape)]
        rows, columns = self.tensor.shape
        return [
            (self.part("compressed"), self.dtype, (rows, columns // 2)),
            (self.part("bitmask"), DType.U8, (rows, columns // 8)),
        ]

    @property
    def nbytes(self) -> int:
        """In the file."""
        return sum(prod(shape) * dtype.nbytes for _, dtype, shape in (*self.head, *self.body))


@dataclass(frozen=True)
class Shard:
    """One file: the shapes first, then tensor after tensor in the model's order."""

    file: str
    slots: tuple[Slot, ...]

    @property
    def layout(self) -> Layout:
        """For the writer."""
        return [r for s in self.slots for r in s.head] + [r for s in self.slots for r in s.body]


def shards(model: FusedModel, dtype: str | None, limit: int) -> tuple[Shard, ...]:
    """All files; none holds more than `limit` bytes of tensors, unless it is one tensor."""
    stored = dtypes(model, dtype)
    groups: list[list[Slot]] = [[]]
    held = 0
    for tensor in model.tensors.values():
        slot = Slot(tensor, stored[tensor.name])
        if groups[-1] and held + slot.nbytes > limit:
            groups.append([])
            held = 0
        groups[-1].append(slot)
        held += slot.nbytes
    if len(groups) == 1:
        return (Shard(SINGLE, tuple(groups[0])),)
    count = len(groups)
    return tuple(
        Shard(f"model-{i:05d}-of-{count:05d}.safetensors", tuple(group))
        for i, group in enumerate(groups, start=1)
    )


def index_bytes(parts: Sequence[Shard]) -> bytes:
    """The index of several shards."""
    total = sum(slot.nbytes for shard in parts for slot in shard.slots)
    value = {
        "metadata": {"total_size": total},
        "weight_map": {name: shard.file for shard in parts for name, _, _ in shard.layout},
    }
    return dump_json(value)
