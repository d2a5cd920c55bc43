"""Decode `sparse-24-bitmask` and `sparse-bitmask` tensors into dense matrices, strictly.

Formats: `compressors/sparse_compressors/sparse_24_bitmask.py` and `sparse_bitmask.py` of
compressed-tensors 0.14.0.1. Bit j of byte b of a row of `bitmask` is column 8b + j; `compressed`
holds the values of the set bits, row by row, in ascending columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backends.vllm.legacy.check import Checker
from backends.vllm.legacy.encode import U8

if TYPE_CHECKING:
    import torch

_BLOCK_ELEMENTS = 1 << 22  # of unpacked bits in hand


def decode_bitmask(
    compressed: NDArray[Any],
    bitmask: U8,
    shape: NDArray[Any],
    row_offsets: NDArray[Any] | None = None,
    *,
    module: str = "",
    file: str | None = None,
    row: int = 0,
) -> NDArray[Any]:
    """The dense matrix `[out, in]` in the type of `compressed`; what is not kept is +0.0.

    Args:
        compressed: 2:4: `[out, in / 2]`; unstructured: `[nnz]`. Any element type, bfloat16 and
            float8 of ml_dtypes too.
        bitmask: uint8 `[out, ceil(in / 8)]`.
        shape: int64 `[2, 1]` or `[2]`: out, in.
        row_offsets: int64 `[out]`, first value of each row; given for `sparse-bitmask`, None for
            `sparse-24-bitmask`.
        module: of the linear, for the message.
        file: for the message.
        row: number of the first row, for the message.

    Raises:
        InputRefused: `bitmask-invalid` for shapes, types, counts or offsets that do not fit.
    """
    check = Checker(module, file)
    rows, columns = check.shape(np.asarray(shape))
    if bitmask.dtype != np.uint8:
        check.refuse("bitmask", str(bitmask.dtype), "uint8")
    offsets = None if row_offsets is None else row_offsets.shape
    check.parts((rows, columns), compressed.shape, bitmask.shape, offsets)
    dense = np.zeros((rows, columns), compressed.dtype)
    if row_offsets is not None:
        kept = check.mask(bitmask, columns, two_four=False, row=row)
        check.offsets(kept, row_offsets, compressed.size)
        dense[kept] = compressed
        return dense
    step = max(1, _BLOCK_ELEMENTS // columns)
    for r0 in range(0, rows, step):
        kept = check.mask(bitmask[r0 : r0 + step], columns, two_four=True, row=row + r0)
        dense[r0 : r0 + step][kept] = compressed[r0 : r0 + step].reshape(-1)
    return dense


def decode_bitmask_torch(
    compressed: torch.Tensor,
    bitmask: torch.Tensor,
    shape: torch.Tensor,
    row_offsets: torch.Tensor | None = None,
    *,
    module: str = "",
    file: str | None = None,
) -> torch.Tensor:
    """`decode_bitmask` of tensors on any device; the result lies where `compressed` does.

    Raises:
        InputRefused: as `decode_bitmask`.
    """
    import torch

    # Bytes of the elements: numpy has no bfloat16 of torch's, and copying moves no value.
    raw = compressed.detach().cpu().contiguous()
    same_size = (torch.int8, torch.int16, torch.int32, torch.int64)
    elements = raw.view(next(t for t in same_size if t.itemsize == raw.element_size())).numpy()
    dense = decode_bitmask(
        elements,
        bitmask.detach().cpu().numpy(),
        shape.detach().cpu().numpy(),
        None if row_offsets is None else row_offsets.detach().cpu().numpy(),
        module=module,
        file=file,
    )
    return torch.from_numpy(dense).view(compressed.dtype).to(compressed.device)
