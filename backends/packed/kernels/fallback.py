"""A packed linear without the native kernels: dense float32 in NumPy or torch, and a warning."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from backends.packed.kernels.arrays import BF16, Activations, is_tensor
from backends.packed.kernels.linear import CpuLinear, Precision
from backends.packed.spec import PackedLinear, Parts
from backends.packed.unpack import dense
from exporter.errors import EngineUnfit

__all__ = ["DenseLinear", "build_linear"]

Array = NDArray[Any]


class DenseLinear:
    """y = x W^T + b by a dense product in float32; nothing is gained from zeros."""

    def __init__(self, spec: PackedLinear, parts: Parts, bias: Array | None = None) -> None:
        """Decompress checked parts once: 4 bytes a weight."""
        self.spec, self._weight = spec, dense(spec, parts)
        self._bias = None if bias is None else np.asarray(bias, np.float32)

    def __call__(self, x: Activations) -> Any:
        """x [..., in] to [..., out]: of x's library, bfloat16 where x is, otherwise float32."""
        if is_tensor(x):
            return self._torch(x)
        array = cast("Array", x)
        y = array.astype(np.float32) @ self._weight.T
        y = y if self._bias is None else y + self._bias
        return y.astype(BF16) if array.dtype == BF16 else y

    def _torch(self, x: Any) -> Any:
        import torch

        bias = None if self._bias is None else torch.from_numpy(self._bias)
        y = torch.nn.functional.linear(x.float(), torch.from_numpy(self._weight), bias)
        return y.to(x.dtype) if x.dtype == torch.bfloat16 else y


@cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"{why}; packed linears run as dense float32 products. Build the kernels with "
        "`python -m backends.packed.kernels.compile` (needs a C++ compiler)",
        RuntimeWarning,
        stacklevel=3,
    )


def build_linear(
    spec: PackedLinear,
    parts: Parts,
    *,
    bias: Array | None = None,
    precision: Precision = "int8",
) -> CpuLinear | DenseLinear:
    """`CpuLinear.build`, or without a built library a `DenseLinear` and one warning.

    Raises:
        EngineUnfit: `engine-unfit`: SPARSE_EXPORT_ISA names what does not run here.
        InputRefused: `packed-invalid`.
    """
    try:
        return CpuLinear.build(spec, parts, bias=bias, precision=precision)
    except EngineUnfit as error:
        if error.code != "engine-missing":
            raise
        _warn_once(str(error).splitlines()[0])
        return DenseLinear(spec, parts, bias)
