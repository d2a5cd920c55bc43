"""Float values of a packed block in the type that the engine computes in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray

from backends.packed.pack import pack
from backends.packed.spec import PackedLinear, Parts
from backends.packed.torch_unpack import to_numpy, to_torch
from backends.packed.unpack import kept, unpack
from backends.packed.values import ValueType

_FLOATS = {
    torch.bfloat16: ValueType.BF16,
    torch.float16: ValueType.FP16,
    torch.float32: ValueType.FP32,
}


def retyped(spec: PackedLinear, parts: Parts, dtype: torch.dtype) -> tuple[PackedLinear, Parts]:
    """The block with its float values rounded to `dtype`, as a dense layer's weight would be.

    Codes with scales stay as they are. The order of values in a tile depends on their width, so
    another width means packing again: the block is then dense in memory for a moment.
    """
    wanted = _FLOATS[dtype]
    if spec.values.quantised or spec.values is wanted:
        return spec, parts
    made = replace(spec, values=wanted)
    if spec.values.bits == wanted.bits:
        return made, {**parts, "values": _rounded(parts["values"], dtype)}
    marked = None if spec.kind == "dense" else kept(spec, parts, 0, spec.shape[0])
    return made, pack(made, _rounded(unpack(spec, parts), dtype), marked)


def _rounded(values: NDArray[Any], dtype: torch.dtype) -> NDArray[Any]:
    return to_numpy(to_torch(values).to(dtype))
