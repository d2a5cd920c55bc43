"""A packed linear as tensors on a device, in the form the kernels take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backends.packed.order import TILE, TILE_COLUMNS
from backends.packed.spec import PackedLinear
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
    def load(
        cls, spec: PackedLinear, parts: Mapping[str, Part], device: torch.device
    ) -> SparseWeight:
        """Bring checked parts (backends.packed.check) of a linear to a device.

        The only repack is a change of view: bytes of a mask are read as little-endian words. The
        kernels trust what they read, so parts that were not checked must not come here.
        """
        found = {name: _tensor(part).to(device) for name, part in parts.items()}
        values = found["values"]
        if spec.values in (ValueType.FP8, ValueType.INT4):
            values = values.view(torch.uint8)
        mask = found["mask"].view(torch.int32) if "mask" in found else None
        return cls(
            Layout.of(spec),
            _or_empty(mask, torch.int32, device),
            values.contiguous(),
            _or_empty(found.get("offsets"), torch.int32, device),
            _or_empty(found.get("starts"), torch.int64, device),
            _or_empty(found.get("scales"), torch.bfloat16, device),
        )

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        tensors = (self.mask, self.values, self.offsets, self.starts, self.scales)
        return sum(tensor.nbytes for tensor in tensors)


def _or_empty(
    tensor: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    if tensor is None:
        return torch.empty(0, dtype=dtype, device=device)
    return tensor.to(dtype).contiguous()


_BY_BYTES = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}


def _tensor(part: Part) -> torch.Tensor:
    """A NumPy array as a tensor; types of ml_dtypes, which torch does not know, by their bits."""
    if isinstance(part, torch.Tensor):
        return part
    array = np.ascontiguousarray(part)
    dtype = _BY_BYTES.get(array.dtype.name)
    if dtype is None:
        return torch.from_numpy(array)
    plain = {1: np.uint8, 2: np.int16}[array.dtype.itemsize]
    return torch.from_numpy(array.view(plain)).view(dtype)
