"""2:4 through cuSPARSELt: y = x W^T with W at half its columns and 2 bits of place a value.

Never run by the project's own tests except with the library's two functions replaced: it needs a
GPU of compute capability 8.0 or more and a torch built with cuSPARSELt. Padding and arguments as
in torch/sparse/semi_structured.py (`cusparselt_mm`, torch 2.13).
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import torch
from torch.nn.functional import pad

from backends.packed.spec import PackedLinear

_ROWS = 8  # rows of x are padded to a multiple: _DTYPE_SHAPE_CONSTRAINTS, dense_min_rows
_WEIGHT = 16  # rows and columns of W must be multiples: sparse_min_rows, sparse_min_cols
_TYPES = (torch.bfloat16, torch.float16)


def unfit(spec: PackedLinear, dtype: torch.dtype) -> str | None:
    """Why this linear cannot go through cuSPARSELt, or None.

    Any N:M with N <= 2 is 2:4, for M is a multiple of 4. Codes of int8 cannot go as they are: the
    library multiplies int8 by int8 only, and activations stay in 16 bits here.
    """
    if spec.kind != "nm" or spec.n > 2:
        return "not 2:4"
    if dtype not in _TYPES:
        return f"{dtype} is not one of its 16-bit types"
    if any(extent % _WEIGHT for extent in spec.shape):
        return f"{list(spec.shape)} is no multiple of {_WEIGHT}"
    return None


def available() -> bool:
    """Whether this torch has cuSPARSELt."""
    return torch.backends.cusparselt.is_available()


def compress(weight: torch.Tensor) -> torch.Tensor:
    """Dense [out, in] with at most 2 of 4 not zero, in the library's own form."""
    return torch._cslt_compress(weight)


def search(packed: torch.Tensor, x: torch.Tensor) -> int:
    """The algorithm that the library finds fastest for this x; runs it, so never in a forward."""
    found = torch._cslt_sparse_mm_search(packed, _padded(x).t(), transpose_result=True)
    return int(found)


def multiply(
    packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, algorithm: int
) -> torch.Tensor:
    """x [M, in] times the compressed weight: [M, out]."""
    y = torch._cslt_sparse_mm(
        packed, _padded(x).t(), bias=bias, transpose_result=True, alg_id=algorithm
    )
    return y[: x.shape[0]].contiguous()


def _padded(x: torch.Tensor) -> torch.Tensor:
    return pad(x, (0, 0, 0, -x.shape[0] % _ROWS)).contiguous()
