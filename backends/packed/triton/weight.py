"""A packed linear as tensors on a device, in the form the kernels take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from backends.packed.order import TILE, TILE_COLUMNS
from backends.packed.spec import PackedLinear
from backends.packed.torch_unpack import to_torch
from backends.packed.values import ValueType

Part = torch.Tensor | NDArray[Any]

VALUES = tuple(ValueType)
KINDS = ("ragged", "nm", "dense")


@dataclass(frozen=True)
class Layout:
    """What a launch must know beside the tensors: whole numbers only, so that an operator of
    torch can take them and nothing depends on data."""

    kind: int  # place in KINDS
    values: int  # place in VALUES
    out_features: int
    in_features: int
    slots: int  # stored values of a tile, kind nm only
    group: int  # columns of one scale, 0: the row

    @classmethod
    def of(cls, spec: PackedLinear) -> Layout:
        """Of a linear as config.json describes it."""
        slots = TILE * spec.n // spec.m if spec.kind == "nm" else 0
        kind, values = KINDS.index(spec.kind), VALUES.index(spec.values)
        return cls(kind, values, *spec.shape, slots, spec.group)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The fields in order: an argument of the operator, `Layout(*numbers)` again."""
        return (
            self.kind, self.values, self.out_features, self.in_features, self.slots, self.group
        )  # fmt: skip

    @property
    def type(self) -> ValueType:
        """The value type."""
        return VALUES[self.values]

    @property
    def row_blocks(self) -> int:
        """Row blocks of 16 rows."""
        return -(-self.out_features // 16)

    @property
    def column_tiles(self) -> int:
        """Tiles of 64 columns."""
        return -(-self.in_features // TILE_COLUMNS)

    @property
    def tiles_per_group(self) -> int:
        """Column tiles that share a scale (all of them where the row has one)."""
        return self.group // TILE_COLUMNS or self.column_tiles

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.in_features // self.group) if self.group else 1


@dataclass(frozen=True)
class SparseWeight:
    """Tensors of one linear on one device; a part that its kind lacks is an empty tensor.

    mask int32 [R, C, 32] (word w of a tile: elements 32 w .. 32 w + 31, lowest bit first), values
    as stored (fp8 as uint8), offsets int32 [R, C], starts int64 [R + 1], scales bfloat16 [out, G].
    """

    layout: Layout
    mask: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    starts: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, spec: PackedLinear, parts: Mapping[str, torch.Tensor]) -> SparseWeight:
        """From checked parts (backends.packed.check) of a linear, all on one device.

        The only repack is a change of view: bytes of a mask are read as little-endian words. The
        kernels trust what they read, so parts that were not checked must not come here.
        """
        values = parts["values"]
        device = values.device
        if spec.values in (ValueType.FP8, ValueType.INT4):
            values = values.view(torch.uint8)
        mask = parts["mask"].contiguous().view(torch.int32) if "mask" in parts else None
        return cls(
            Layout.of(spec),
            _or_empty(mask, torch.int32, device),
            values.contiguous(),
            _or_empty(parts.get("offsets"), torch.int32, device),
            _or_empty(parts.get("starts"), torch.int64, device),
            _or_empty(parts.get("scales"), torch.bfloat16, device),
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order of the fields: `SparseWeight(layout, *tensors)` again."""
        return self.mask, self.values, self.offsets, self.starts, self.scales

    def emptied(self) -> SparseWeight:
        """The same with empty tensors, for a linear that is computed otherwise."""
        return SparseWeight(self.layout, *(tensor.new_empty(0) for tensor in self.tensors))


def _or_empty(
    tensor: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    if tensor is None:
        return torch.empty(0, dtype=dtype, device=device)
    return tensor.to(dtype).contiguous()


def as_tensor(part: Part) -> torch.Tensor:
    """A part as a tensor, whichever way the caller read it."""
    return part if isinstance(part, torch.Tensor) else to_torch(part)
