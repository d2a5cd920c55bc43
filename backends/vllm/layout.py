"""Which part of which tensor goes into which safetensors file, decided before any byte.

File names and index are those of `backends.hf.layout`. Parts whose bytes are a multiple of 8 stand
in the model's order, so that each is aligned to its type; the others follow, wider types first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from backends.hf.layout import METADATA, SINGLE
from backends.hf.rounded import dtypes
from backends.vllm.choose import Chosen
from exporter.model import FusedModel, FusedTensor
from exporter.store.dtypes import DType
from exporter.store.jsonio import dump_json
from exporter.store.writer import Layout, header_bytes

_ALIGNED = 8  # bytes: the widest type, and where the writer starts the data


@dataclass(frozen=True)
class Piece:
    """One tensor of a file: a part of a packed linear, or a plain tensor (`part` is "")."""

    name: str
    tensor: FusedTensor
    chosen: Chosen | None
    part: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """In the file."""
        return prod(self.shape) * self.dtype.nbytes


@dataclass(frozen=True)
class Shard:
    """One file, its pieces in the order of their bytes."""

    file: str
    pieces: tuple[Piece, ...]

    @property
    def layout(self) -> Layout:
        """For the writer."""
        return [(p.name, p.dtype, p.shape) for p in self.pieces]

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return len(header_bytes(self.layout, METADATA)) + sum(p.nbytes for p in self.pieces)


def shards(model: FusedModel, chosen: Mapping[str, Chosen], limit: int) -> tuple[Shard, ...]:
    """All files; none holds more than `limit` bytes of tensors, unless it is one tensor.

    The parts of a linear lie in one file.
    """
    stored = dtypes(model, None)
    groups: list[list[Piece]] = [[]]
    held = 0
    for name, tensor in model.tensors.items():
        pieces = _pieces(tensor, chosen.get(name), stored[name])
        nbytes = sum(p.nbytes for p in pieces)
        if groups[-1] and held + nbytes > limit:
            groups.append([])
            held = 0
        groups[-1] += pieces
        held += nbytes
    if len(groups) == 1:
        return (Shard(SINGLE, _ordered(groups[0])),)
    count = len(groups)
    return tuple(
        Shard(f"model-{i:05d}-of-{count:05d}.safetensors", _ordered(group))
        for i, group in enumerate(groups, start=1)
    )


def index_bytes(parts: Sequence[Shard]) -> bytes:
    """The index of several shards."""
    pieces = [piece for shard in parts for piece in shard.pieces]
    value = {
        "metadata": {"total_size": sum(p.nbytes for p in pieces)},
        "weight_map": {p.name: shard.file for shard in parts for p in shard.pieces},
    }
    return dump_json(value)


def _pieces(tensor: FusedTensor, chosen: Chosen | None, stored: DType) -> list[Piece]:
    if chosen is None:
        return [Piece(tensor.name, tensor, None, "", stored, tensor.shape)]
    return [
        Piece(f"{chosen.linear.module}.{part}", tensor, chosen, part, dtype, shape)
        for part, (dtype, shape) in chosen.tensors.items()
    ]


def _ordered(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    whole = [p for p in pieces if p.nbytes % _ALIGNED == 0]
    rest = [p for p in pieces if p.nbytes % _ALIGNED]
    return (*whole, *sorted(rest, key=lambda p: -p.dtype.nbytes))
