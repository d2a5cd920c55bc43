"""Launch the kernels: grid, types and scratch follow from shapes alone.

Nothing here waits for the device or allocates by data, so a CUDA graph can capture it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
import triton.language as tl

from backends.packed.triton import kernels
from backends.packed.triton.weight import Layout, SparseWeight
from backends.packed.values import ValueType

_CODES = {
    ValueType.INT8: kernels.INT8,
    ValueType.INT4: kernels.INT4,
    ValueType.FP8: kernels.FP8,
}
_FLOATS = {
    ValueType.BF16: torch.bfloat16,
    ValueType.FP16: torch.float16,
    ValueType.FP32: torch.float32,
}
_TRITON = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}
# Where TRITON_INTERPRET=1 was set when the kernels were imported, `triton.jit` made other objects.
INTERPRETED = not isinstance(cast(object, kernels.multiply), triton.JITFunction)
_ADD_BLOCK = 1024


@dataclass(frozen=True)
class Config:
    """How a product is cut: row blocks of a program, splits of the input, warps, stages."""

    block_rows: int = 2
    splits: int = 1
    warps: int = 4
    stages: int = 2


def multiply(
    weight: SparseWeight, x: torch.Tensor, bias: torch.Tensor | None, config: Config
) -> torch.Tensor:
    """x W^T + bias, summed in float32.

    Args:
        x: [M, in] bfloat16, float16 or float32, last dimension contiguous; any M >= 0, made for
            M <= 64 (more rows read the weight again, once per 64).
        bias: [out] or None.
        config: `splits` > 1 takes [splits, M, out] float32 of scratch and a second launch.

    Returns:
        [M, out] in x's type.
    """
    layout, rows = weight.layout, x.shape[0]
    y = torch.empty(rows, layout.out_features, dtype=_stored(x.dtype), device=x.device)
    if not rows:
        return y.to(x.dtype)
    per_split = -(-layout.column_tiles // config.splits)
    splits = -(-layout.column_tiles // per_split)
    target = y if splits == 1 else y.new_empty(splits, *y.shape, dtype=torch.float32)
    block_m = min(64, max(16, 1 << (rows - 1).bit_length()))
    grid = (-(-layout.row_blocks // config.block_rows), splits, -(-rows // block_m))
    _launch(
        kernels.multiply, grid, x, *weight.tensors, bias if bias is not None else x, target,
        rows, layout.out_features, layout.in_features, x.stride(0),
        layout.groups, layout.tiles_per_group, per_split,
        **_constants(layout, operand_type(layout.type, x.dtype), config.block_rows),
        GROUPED=layout.groups > 1, BIASED=bias is not None, SPLITS=splits, BM=block_m,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if splits > 1:
        add_splits(target, bias, y)
    return y.to(x.dtype)


def add_splits(parts: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """y [M, out] = sum of parts [splits, M, out] float32, first to last, + bias."""
    grid = (-(-y.numel() // _ADD_BLOCK),)
    _launch(
        kernels.add_splits, grid,
        parts, bias if bias is not None else parts, y, y.numel(), y.shape[1],
        SPLITS=parts.shape[0], BIASED=bias is not None, BLOCK=_ADD_BLOCK,
    )  # fmt: skip


def expand(weight: SparseWeight, dtype: torch.dtype, r0: int, r1: int) -> torch.Tensor:
    """Rows r0 to r1 of W (r0 a multiple of 16) as `dtype` [r1 - r0, in], scales applied."""
    layout, block_rows = weight.layout, 2
    y = torch.empty(r1 - r0, layout.in_features, dtype=_stored(dtype), device=weight.values.device)
    grid = (-(-(r1 - r0) // (16 * block_rows)), layout.column_tiles)
    compute = torch.float32 if layout.type.quantised else _FLOATS[layout.type]
    _launch(
        kernels.expand, grid, *weight.tensors, y, r0 // 16, r1 - r0,
        layout.out_features, layout.in_features, layout.groups, layout.tiles_per_group,
        **_constants(layout, compute, block_rows), num_warps=4,
    )  # fmt: skip
    return y.to(dtype)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Start a kernel; `Any`, for a kernel's parameters have no types that Python knows."""
    kernel[grid](*args, **constants)


def _constants(layout: Layout, compute: torch.dtype, block_rows: int) -> dict[str, Any]:
    return {
        "KIND": layout.kind,
        "STEP": layout.type.step,
        "CODE": _CODES.get(layout.type, kernels.FLOAT),
        "SLOTS": layout.slots,
        "SCALED": layout.type.quantised,
        "COMPUTE": _TRITON[torch.float32 if INTERPRETED else compute],
        "BR": block_rows,
    }


def operand_type(values: ValueType, x: torch.dtype) -> torch.dtype:
    """Type of the operands of the product: x's where it holds every stored value exactly."""
    return x if _FLOATS.get(values, x) == x else torch.float32


def _stored(dtype: torch.dtype) -> torch.dtype:
    """Type in which a kernel stores what the caller wants as `dtype`.

    The interpreter of Triton 3.7 truncates where it casts to bfloat16 and multiplies bfloat16 as
    integers: there everything is float32, and torch rounds at the end.
    """
    return torch.float32 if INTERPRETED else dtype
