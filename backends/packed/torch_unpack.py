"""Packed linears as dense torch tensors, and parts between torch and numpy without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from backends.packed.order import TILE_COLUMNS, TILE_ROWS, blocks_at_once
from backends.packed.spec import PackedLinear
from backends.packed.unpack import fill, unpack
from backends.packed.values import ValueType

Array = NDArray[Any]

# numpy has no such types of its own: the memory passes under an integer's name.
_NAMED: dict[torch.dtype, tuple[torch.dtype, np.dtype[Any]]] = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
}
_BY_NUMPY = {named: (plain, dtype) for dtype, (plain, named) in _NAMED.items()}


def to_numpy(tensor: torch.Tensor) -> Array:
    """A CPU tensor's memory as an array; bfloat16 and fp8 as the types of ml_dtypes."""
    flat = tensor.detach()
    plain, named = _NAMED.get(flat.dtype, (flat.dtype, None))
    array = flat.view(plain).numpy()
    return array if named is None else array.view(named)


def to_torch(array: Array) -> torch.Tensor:
    """An array's memory as a CPU tensor; the inverse of `to_numpy`. Read-only arrays are copied."""
    held = array if array.flags.writeable else array.copy()
    plain, dtype = _BY_NUMPY.get(held.dtype, (None, None))
    if plain is None or dtype is None:
        return torch.from_numpy(held)
    return torch.from_numpy(held.view(f"u{held.dtype.itemsize}").view(_INTEGERS[plain])).view(dtype)


_INTEGERS = {torch.int16: np.int16, torch.uint8: np.uint8}
_TORCH = {
    ValueType.BF16: torch.bfloat16,
    ValueType.FP16: torch.float16,
    ValueType.FP32: torch.float32,
    ValueType.INT8: torch.int8,
    ValueType.INT4: torch.int8,
    ValueType.FP8: torch.float8_e4m3fn,
}


def dense_torch(
    spec: PackedLinear, parts: Mapping[str, torch.Tensor] | Mapping[str, Array], dtype: torch.dtype
) -> torch.Tensor:
    """The weight `[out, in]` in `dtype`, rounded once to nearest where that is narrower.

    Args:
        parts: of one linear, checked; on a CPU, or all on one other device, where the result
            then lies too. Peak memory is the result and one batch of row blocks.
    """
    device = next((v.device for v in parts.values() if isinstance(v, torch.Tensor)), None)
    out = torch.empty(spec.shape, dtype=dtype, device=device)
    fill_torch(spec, parts, out)
    return out


def fill_torch(
    spec: PackedLinear, parts: Mapping[str, torch.Tensor] | Mapping[str, Array], out: torch.Tensor
) -> None:
    """As `dense_torch`, into `out` `[out, in]`, contiguous, on the device of the parts."""
    tensors = {k: v if isinstance(v, torch.Tensor) else to_torch(v) for k, v in parts.items()}
    if out.device.type != "cpu":
        _fill_on_device(spec, tensors, out)
        return
    arrays = {part: to_numpy(tensor) for part, tensor in tensors.items()}
    if out.dtype == _TORCH[spec.values] and not spec.values.quantised:
        fill(spec, arrays, 0, spec.shape[0], to_numpy(out))
        return
    step = blocks_at_once(spec.shape[1]) * TILE_ROWS
    for r0 in range(0, spec.shape[0], step):
        r1 = min(r0 + step, spec.shape[0])
        codes = to_torch(unpack(spec, arrays, r0, r1))
        out[r0:r1] = _scaled(spec, codes, tensors.get("scales"), r0, r1)


def _scaled(
    spec: PackedLinear, codes: torch.Tensor, scales: torch.Tensor | None, r0: int, r1: int
) -> torch.Tensor:
    """Codes of rows `[r0, r1)` times their scales in float32; other values as they are."""
    if scales is None:
        return codes
    wide, factors = codes.float(), scales[r0:r1].float()
    if not spec.group:
        return wide.mul_(factors)
    repeated = factors.repeat_interleave(spec.group, dim=1)[:, : spec.shape[1]]
    return wide.mul_(repeated)


def _fill_on_device(
    spec: PackedLinear, parts: Mapping[str, torch.Tensor], out: torch.Tensor
) -> None:
    """As above in torch operations alone, so that nothing leaves the device."""
    step = blocks_at_once(spec.shape[1]) * _DEVICE_BATCH
    begins = parts["starts"].tolist() if spec.kind == "ragged" else None
    for b0 in range(0, spec.row_blocks, step):
        b1 = min(b0 + step, spec.row_blocks)
        r0, r1 = b0 * TILE_ROWS, min(b1 * TILE_ROWS, spec.shape[0])
        if spec.kind == "dense":
            codes = parts["values"][r0:r1]
            if spec.values is ValueType.INT4:
                codes = _nibbles(codes)[:, : spec.shape[1]]
        else:
            codes = _device_tiles(spec, parts, b0, b1, begins)[: r1 - r0, : spec.shape[1]]
        out[r0:r1] = _scaled(spec, codes, parts.get("scales"), r0, r1)


_DEVICE_BATCH = 16  # batches of the CPU's size at once: a kernel launch costs more than a loop


def _device_tiles(
    spec: PackedLinear, parts: Mapping[str, torch.Tensor], b0: int, b1: int, begins: Any
) -> torch.Tensor:
    """Rows of the row blocks `[b0, b1)`, padding included: `[16 * blocks, 64 * C]`."""
    mask = parts["mask"][b0:b1]
    places = torch.arange(8, device=mask.device, dtype=torch.uint8)
    bits = ((mask.unsqueeze(-1) >> places) & 1).bool().reshape(-1)
    values = parts["values"]
    half = 2 if spec.values is ValueType.INT4 else 1
    chosen = values[b0:b1].reshape(-1)
    if begins is not None:
        chosen = values[begins[b0] // half : begins[b1] // half]
    if half == 2:
        chosen = _nibbles(chosen)
        if begins is not None:
            chosen = chosen[~_pads(parts, b0, b1, mask, bits, chosen.numel())]
    plain = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[chosen.element_size()]
    flat = torch.zeros(bits.numel(), dtype=plain, device=mask.device)
    flat.masked_scatter_(bits, chosen.view(plain))
    g, n, c = spec.values.step, mask.shape[0], mask.shape[1]
    rows = flat.view(n, c, TILE_COLUMNS // g, TILE_ROWS, g).permute(0, 3, 1, 2, 4)
    return rows.reshape(n * TILE_ROWS, c * TILE_COLUMNS).view(_TORCH[spec.values])


def _pads(
    parts: Mapping[str, torch.Tensor],
    b0: int,
    b1: int,
    mask: torch.Tensor,
    bits: torch.Tensor,
    slots: int,
) -> torch.Tensor:
    """Which of the slots of row blocks `[b0, b1)` pad an odd tile: bool `[slots]`."""
    counts = bits.view(mask.shape[0], mask.shape[1], -1).sum(dim=-1)
    ends = (parts["starts"][b0:b1, None] - parts["starts"][b0]) + parts["offsets"][b0:b1] + counts
    pads = torch.zeros(slots, dtype=torch.bool, device=mask.device)
    pads[ends[counts % 2 == 1]] = True
    return pads


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Bytes `[..., k]` as int8 codes `[..., 2 k]`, low nibble first."""
    low = (packed << 4).view(torch.int8) >> 4
    high = packed.view(torch.int8) >> 4
    return torch.stack([low, high], dim=-1).flatten(-2)
