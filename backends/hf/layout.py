"""Which tensor goes into which safetensors file, decided from headers before any byte.

File names and index as transformers 5.19 writes them (`save_pretrained`, huggingface_hub's
`split_torch_state_dict_into_shards`); tensors keep the model's order, so shards do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from backends.hf.rounded import dtypes
from exporter.model import FusedModel, FusedTensor
from exporter.store.dtypes import DType
from exporter.store.jsonio import dump_json
from exporter.store.writer import Layout

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}  # transformers refuses a file without it


@dataclass(frozen=True)
class Slot:
    """One tensor as it is stored: a transposed linear as `[in, out]`."""

    tensor: FusedTensor
    dtype: DType

    @property
    def transposed(self) -> bool:
        """Whether the file holds the transpose of the fused rows."""
        return self.tensor.linear is not None and self.tensor.linear.transposed

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    @property
    def nbytes(self) -> int:
        """In the file."""
        return prod(self.shape) * self.dtype.nbytes


@dataclass(frozen=True)
class Shard:
    """One file."""

    file: str
    slots: tuple[Slot, ...]

    @property
    def layout(self) -> Layout:
        """For the writer."""
        return [(s.tensor.name, s.dtype, s.shape) for s in self.slots]


def shards(model: FusedModel, asked: str | None, limit: int) -> tuple[Shard, ...]:
    """All files; none holds more than `limit` bytes of tensors, unless it is one tensor."""
    stored = dtypes(model, asked)
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
    slots = [slot for shard in parts for slot in shard.slots]
    value = {
        "metadata": {
            "total_parameters": sum(prod(s.shape) for s in slots),
            "total_size": sum(s.nbytes for s in slots),
        },
        "weight_map": {s.tensor.name: shard.file for shard in parts for s in shard.slots},
    }
    return dump_json(value)
